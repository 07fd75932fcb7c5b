//! The identity of a message, derived from its number.

use twox_hash::XxHash3_128;

/// The id of the message numbered (conversation, sender, grant, counter).
///
/// XXH3-128 with seed 0 over the four numbers as little-endian u64s, 32 bytes,
/// written as the algorithm's canonical form: most significant byte first.
/// Server and clients derive it alike; it is never stored, and two messages
/// with different numbers sharing one is as likely as any 128-bit collision.
pub fn message_id(conversation: u64, sender: u64, grant: u64, counter: u64) -> [u8; 16] {
    let mut numbers = [0u8; 32];
    for (place, number) in numbers
        .chunks_exact_mut(8)
        .zip([conversation, sender, grant, counter])
    {
        place.copy_from_slice(&number.to_le_bytes());
    }
    XxHash3_128::oneshot(&numbers).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivation_is_pinned() {
        // Stored nowhere and computed everywhere: a change would rename every message.
        let id = message_id(0x00f3_0102_0304_0506, 0x1122_3344_5566_7788, 1, 1);
        assert_eq!(crate::to_hex32(&id), "b840b8d973ab6b4ef36c7ae764114de8");
        assert_ne!(
            id,
            message_id(0x00f3_0102_0304_0506, 0x1122_3344_5566_7788, 1, 2)
        );
        assert_ne!(message_id(1, 2, 3, 4), message_id(2, 1, 3, 4));
    }
}
