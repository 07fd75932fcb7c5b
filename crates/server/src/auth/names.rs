//! Names: what is stripped from them, and the key a login name is unique under.

use tidings_core::ports::directory::LoginName;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use unicode_security::skeleton;

/// The most characters of a name.
pub const NAME_CHARS_MAX: usize = 64;

/// How many combining marks may stand on one character: enough for every living script, too few
/// to write over the lines above and below.
const MARKS_MAX: usize = 4;

/// How long a name may be before it is looked at: 4 bytes a character, as much again to strip.
const RAW_BYTES_MAX: usize = NAME_CHARS_MAX * 8;

/// A name as others see it: NFC, without anything invisible, runs of white space as one
/// space, 1 to [`NAME_CHARS_MAX`] characters; `None` when nothing fit is left.
pub fn display_name(raw: &str) -> Option<String> {
    if raw.len() > RAW_BYTES_MAX {
        return None;
    }
    let mut name = String::with_capacity(raw.len());
    let mut marks = 0;
    for c in raw.nfc() {
        if c.is_whitespace() {
            if !name.is_empty() && !name.ends_with(' ') {
                name.push(' ');
            }
            continue;
        }
        if is_invisible(c) {
            continue;
        }
        marks = if is_combining_mark(c) { marks + 1 } else { 0 };
        if marks <= MARKS_MAX {
            name.push(c);
        }
    }
    // Stripping may have brought characters together that compose.
    let name: String = name.trim_end().nfc().collect();
    let begins_with_mark = name.chars().next().is_none_or(is_combining_mark);
    (!begins_with_mark && name.chars().count() <= NAME_CHARS_MAX).then_some(name)
}

/// A name to sign in and be found with: as [`display_name`], but without any space, and
/// with the key that look-alikes share.
pub fn login_name(raw: &str) -> Option<LoginName> {
    let name = display_name(raw.trim())?;
    if name.contains(' ') {
        return None;
    }
    let key = fold(&name);
    (!key.is_empty()).then_some(LoginName { name, key })
}

/// Compatibility forms, letter case and confusable characters (UTS 39 skeletons) folded away.
///
/// `i`, `l`, `1` and `|` become one: the skeleton tells `I` from `i` and takes it for `l`,
/// which after folding of case would let "Iuke" stand beside "luke".
fn fold(name: &str) -> String {
    let lower: String = name.nfkc().flat_map(char::to_lowercase).collect();
    let shape: String = skeleton(&lower).collect();
    let folded: String = shape.chars().flat_map(char::to_lowercase).collect();
    folded
        .nfc()
        .map(|c| {
            if c == 'i' || c == '1' || c == '|' {
                'l'
            } else {
                c
            }
        })
        .collect()
}

/// Controls, format characters (zero width, direction), fillers that look like nothing, and what
/// is no character: general categories Cc, Cf, Co, Cn's noncharacters, and the default-ignorable rest.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xAD | 0x34F | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2
            | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F | 0x2800 | 0x3164
            | 0xE000..=0xF8FF | 0xFDD0..=0xFDEF | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0
            | 0xFFF0..=0xFFFB | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3
            | 0x1D173..=0x1D17A | 0xE0000..=0x10_FFFF)
        || u32::from(c) & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_stripped() {
        let cases = [
            ("Ann", Some("Ann")),
            ("  Ann \t\n  Lee ", Some("Ann Lee")),
            ("A\u{0}n\u{7}n", Some("Ann")),
            ("A\u{200b}n\u{200d}n\u{feff}", Some("Ann")),
            ("\u{202e}nnA\u{2066}", Some("nnA")),
            ("Jose\u{301}", Some("José")),
            ("e\u{200b}\u{301}", Some("é")),
            (
                "z\u{301}\u{302}\u{303}\u{304}\u{305}\u{306}\u{307}",
                Some("ź\u{302}\u{303}\u{304}\u{305}"),
            ),
            ("\u{301}a", None),
            ("", None),
            (" \u{200b} ", None),
            ("\u{3164}", None),
            ("\u{e000}\u{ffff}", None),
        ];
        for (raw, expected) in cases {
            // One mark of the tower composes with its letter before they are counted.
            assert_eq!(display_name(raw).as_deref(), expected, "{raw:?}");
        }
        assert!(display_name(&"ä".repeat(64)).is_some());
        assert!(display_name(&"ä".repeat(65)).is_none());
        assert!(display_name(&"\u{200b}".repeat(1000)).is_none());
    }

    #[test]
    fn look_alikes_share_a_key() {
        let same = [
            ("alice", "ALICE"),
            ("alice", "аlice"),
            ("paypal", "pаypаl"),
            ("paypal", "paypaI"),
            ("paypal", "paypa1"),
            ("luke", "Iuke"),
            ("Ivan", "ivan"),
            ("bob0", "bobo"),
            ("scope", "ѕсоре"),
            ("alice", "ａｌｉｃｅ"),
            ("modern", "rnodern"),
            ("straße", "STRASSE"),
            ("Jose\u{301}", "josé"),
            ("a\u{200b}nn", "ann"),
        ];
        for (one, other) in same {
            let key = |name: &str| login_name(name).unwrap().key;
            if (one, other) == ("straße", "STRASSE") {
                // Lower case keeps ß: German readers tell these apart, so both may exist.
                assert_ne!(key(one), key(other));
            } else {
                assert_eq!(key(one), key(other), "{one} and {other}");
            }
        }
        assert_ne!(
            login_name("ann").unwrap().key,
            login_name("anna").unwrap().key
        );
        assert_eq!(login_name("two words"), None);
        assert_eq!(login_name("Ann").unwrap().name, "Ann");
    }
}
