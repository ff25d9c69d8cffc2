//! Names of objects. Pure.
//!
//! `s/HASH/FENCE/SEQ` is an object, `s/HASH/FENCE/SEQ-DIGEST` a part of it. Numbers have 20 digits, so that names sort as
//! their numbers do. A part is named by its content: a repetition writes the same one.

use std::fmt;

use super::delta::Digest;
pub(crate) use crate::cluster::ledger::UserHash;
use crate::support::hex;

/// First directory of all names.
pub(crate) const ROOT: &str = "s";
/// Digits of the largest number.
const NUMBER_DIGITS: usize = 20;

/// An object of a user: which ownership wrote it, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    pub(crate) fence: u64,
    pub(crate) seq: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) user: UserHash,
    pub(crate) id: ObjectId,
    /// Digest of a part.
    pub(crate) part: Option<Digest>,
}

impl Key {
    /// Reads a name. `None`: it is another program's.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut names = name.split('/');
        let (root, user, fence, rest) = (names.next()?, names.next()?, names.next()?, names.next()?);
        let (seq, part) = match rest.split_once('-') {
            Some((seq, part)) => (seq, Some(parse_lower(part)?)),
            None => (rest, None),
        };
        let id = ObjectId { fence: number(fence)?, seq: number(seq)? };
        let key = Self { user: user.parse().ok()?, id, part };
        (root == ROOT && names.next().is_none()).then_some(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ObjectId { fence, seq } = self.id;
        write!(f, "{ROOT}/{}/{fence:0w$}/{seq:0w$}", self.user, w = NUMBER_DIGITS)?;
        self.part.map_or(Ok(()), |part| write!(f, "-{}", hex::encode(&part)))
    }
}

fn number(text: &str) -> Option<u64> {
    let is_number = text.len() == NUMBER_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Hexadecimal digits in lower case: each value has one text.
pub(super) fn parse_lower<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hex::decode(text).filter(|_| is_lower)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use crate::model::ids::UserId;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_name_is_no_key() {
        let key = Key {
            user: UserHash::of(&UserId::new("alice").unwrap()),
            id: ObjectId { fence: 7, seq: u64::MAX },
            part: None,
        };
        let name = key.to_string();
        assert_eq!(Key::parse(&name), Some(key));
        for wrong in [
            "",
            "s",
            "s/x/1/2",
            name.strip_prefix('s').unwrap(),
            name.strip_suffix('5').unwrap(),
            &format!("{name}/"),
            &format!("{name}/x"),
            &format!("{name}-"),
            &format!("{name}-ff"),
            &name.to_uppercase(),
            &name.replace("18446744073709551615", "18446744073709551616"),
            &name.replace("00000000000000000007", "+0000000000000000007"),
        ] {
            assert_eq!(Key::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn key_round_trips_and_sorts(
            user: [u8; 16], fence: u64, seqs: (u64, u64), part: Option<[u8; 32]>
        ) {
            let key = |seq| Key { user: UserHash::from_bytes(user), id: ObjectId { fence, seq }, part };
            let (one, other) = (key(seqs.0), key(seqs.1));
            prop_assert_eq!(Key::parse(&one.to_string()), Some(one));
            let by_name = one.to_string().cmp(&other.to_string());
            prop_assert_eq!(by_name, seqs.0.cmp(&seqs.1));
        }

        #[test]
        fn any_text_parses_without_panic(text: String) {
            Key::parse(&text);
        }
    }
}
