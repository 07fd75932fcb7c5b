//! A Bloom filter that tells most keys that a segment doesn't hold, so that a cold read of an
//! unknown conversation or sender costs no block.
//!
//! The number of bits is a power of two, so that a filter made for more keys than came (a merge
//! doesn't know how many repeat) can be folded in half without hashing them again.

use tidings_core::ids::{ConversationId, SenderId, UserId};
use tidings_core::rows::StateKey;

/// At least so many bits a key: with five probes 2 % of the unknown keys get through, at the
/// average of 11 bits half a percent.
const BITS_PER_KEY_MIN: u64 = 8;
const PROBES: u64 = 5;
const WORD_BITS: u64 = 64;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// An empty filter with room for `keys`.
    pub fn for_keys(keys: u64) -> Filter {
        let bits = (keys.max(1) * BITS_PER_KEY_MIN)
            .next_power_of_two()
            .max(WORD_BITS);
        Filter {
            words: vec![0; (bits / WORD_BITS) as usize],
        }
    }

    /// Adds a key by its hash.
    pub fn insert(&mut self, hash: u64) {
        let mask = self.words.len() as u64 * WORD_BITS - 1;
        for bit in probes(hash, mask) {
            self.words[(bit / WORD_BITS) as usize] |= 1 << (bit % WORD_BITS);
        }
    }

    /// `false`: the key was never added.
    pub fn may_hold(&self, hash: u64) -> bool {
        let mask = self.words.len() as u64 * WORD_BITS - 1;
        probes(hash, mask)
            .all(|bit| self.words[(bit / WORD_BITS) as usize] & (1 << (bit % WORD_BITS)) != 0)
    }

    /// Halves the filter while that leaves enough bits for `keys`.
    pub fn fold(&mut self, keys: u64) {
        let wanted = Filter::for_keys(keys).words.len();
        while self.words.len() > wanted {
            let upper = self.words.split_off(self.words.len() / 2);
            for (low, high) in self.words.iter_mut().zip(upper) {
                *low |= high;
            }
        }
    }

    /// The stored bytes: the words, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// Undoes [`Filter::to_bytes`]; `None` when the length isn't one that it makes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || !words.len().is_power_of_two() {
            return None;
        }
        Some(Filter {
            words: words.iter().map(|w| u64::from_le_bytes(*w)).collect(),
        })
    }
}

/// Double hashing: the second hash is odd, so that the probes differ.
fn probes(hash: u64, mask: u64) -> impl Iterator<Item = u64> {
    let step = mix(hash) | 1;
    (0..PROBES).map(move |i| hash.wrapping_add(step.wrapping_mul(i)) & mask)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): every input bit moves half of the output bits.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash under which a conversation's events and head are looked up. The hashes are stored:
/// never change them without another format version.
pub fn conversation_hash(conversation: ConversationId) -> u64 {
    mix(conversation.0)
}

/// The hash under which a user's grant and cursor are looked up.
pub fn user_hash(conversation: ConversationId, user: UserId) -> u64 {
    mix(mix(conversation.0) ^ user.0)
}

/// The hash of a row of state.
pub fn state_hash(conversation: ConversationId, key: StateKey) -> u64 {
    match key {
        StateKey::Head => conversation_hash(conversation),
        StateKey::Grant(user) => user_hash(conversation, user),
        StateKey::Sender(user, SenderId(sender)) => {
            mix(user_hash(conversation, user) ^ sender.rotate_left(32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_knows_its_keys_and_refuses_most_others_also_when_folded() {
        let key = |i: u64| {
            state_hash(
                ConversationId(i % 7),
                StateKey::Sender(UserId(i), SenderId(i * 3)),
            )
        };
        let mut filter = Filter::for_keys(40_000);
        (0..5_000).for_each(|i| filter.insert(key(i)));
        filter.fold(5_000);
        assert!(
            filter.to_bytes().len() <= 2 * 5_000,
            "folded to at most 16 bits a key"
        );
        let filter = Filter::from_bytes(&filter.to_bytes()).unwrap();
        assert!((0..5_000).all(|i| filter.may_hold(key(i))));
        let wrong = (5_000..25_000).filter(|i| filter.may_hold(key(*i))).count();
        assert!(
            wrong < 20_000 * 3 / 100,
            "{wrong} of 20,000 unknown keys got through"
        );
    }
}
