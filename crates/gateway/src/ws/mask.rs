//! The XOR that RFC 6455 section 5.3 demands of clients.

/// Applies `mask` to `bytes`, the first of which is byte `offset` of its frame's payload.
///
/// Masking and unmasking are the same operation. Whole words are handled at once, a form that
/// the compiler turns into vector instructions.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut key = mask;
    key.rotate_left(offset & 3);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        let chunk: &mut [u8; 8] = chunk.try_into().expect("chunks_exact_mut(8) gives 8 bytes");
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;

    #[test]
    fn any_split_of_a_payload_unmasks_like_the_whole() {
        let mask = [0x11, 0x22, 0x33, 0x44];
        let plain: Vec<u8> = (0..67).collect();
        let masked: Vec<u8> = plain
            .iter()
            .enumerate()
            .map(|(i, b)| b ^ mask[i % 4])
            .collect();
        for split in 0..=masked.len() {
            let mut bytes = masked.clone();
            let (left, right) = bytes.split_at_mut(split);
            unmask(left, mask, 0);
            unmask(right, mask, split);
            assert_eq!(bytes, plain, "split at {split}");
        }
    }
}
