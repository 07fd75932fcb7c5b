//! Which version of the schema two sides speak: the highest that both know.

use crate::VERSION;

/// The versions that one side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u32,
    /// The newest; not below `oldest`, or there is none.
    pub newest: u32,
}

impl Versions {
    /// Those of this release.
    pub const OURS: Versions = Versions {
        oldest: 1,
        newest: VERSION,
    };

    /// What the fields `version` and `oldest` of `hello` or `auth` say.
    pub fn said(version: u32, oldest: u32) -> Versions {
        Versions {
            oldest: if oldest == 0 { version } else { oldest },
            newest: version,
        }
    }

    /// The field `oldest` that says it: 0 when there is but one version.
    pub fn oldest_said(self) -> u32 {
        if self.oldest == self.newest {
            0
        } else {
            self.oldest
        }
    }

    /// The highest version that both speak. Both sides find the same one.
    pub fn common(self, other: Versions) -> Option<u32> {
        let highest = self.newest.min(other.newest);
        (highest >= self.oldest.max(other.oldest)).then_some(highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_find_the_highest_common_version() {
        for (one, other, common) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 2), (1, 1), Some(1)),
            ((1, 3), (2, 4), Some(3)),
            ((2, 2), (1, 9), Some(2)),
            ((1, 1), (2, 3), None),
            // Nothing is what somebody speaks who says nonsense.
            ((3, 1), (1, 3), None),
            ((0, 0), (1, 1), None),
        ] {
            let [one, other] = [one, other].map(|(oldest, newest)| Versions { oldest, newest });
            assert_eq!(one.common(other), common, "{one:?} {other:?}");
            assert_eq!(other.common(one), common, "{other:?} {one:?}");
        }
    }

    #[test]
    fn who_names_one_version_speaks_no_other() {
        for versions in [(1, 1), (1, 4), (3, 3)] {
            let (oldest, newest) = versions;
            let versions = Versions { oldest, newest };
            let said = Versions::said(versions.newest, versions.oldest_said());
            assert_eq!(said, versions);
        }
    }
}
