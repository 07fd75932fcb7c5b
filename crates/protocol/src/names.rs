//! The names of enum values in JSON: lower snake case, as in the schema.

use crate::wire::{
    ConversationKind, Encoding, Feature, FeatureState, Kind, Presence, Role, Status,
};

/// The number of an enum value whose JSON name this version does not know:
/// what a later server said must not make an older client fail. No schema
/// value has it, so `try_from` gives an error as for an unknown protobuf value.
pub const UNKNOWN: i32 = -1;

/// An enum of the schema whose values have names in JSON.
pub trait Named: Sized + Copy {
    /// The name in JSON.
    fn name(self) -> &'static str;
    /// The value of this name.
    fn from_name(name: &str) -> Option<Self>;
}

macro_rules! names {
    ($($enum:ident { $($value:ident = $name:literal),* })*) => {$(
        impl Named for $enum {
            fn name(self) -> &'static str {
                match self { $($enum::$value => $name,)* }
            }
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some($enum::$value),)* _ => None }
            }
        }
    )*};
}

names! {
    Kind { Text = "text", Json = "json", Empty = "empty", Members = "members" }
    Encoding { Identity = "identity", Zstd = "zstd" }
    Presence { Offline = "offline", Online = "online", Away = "away" }
    Status { Sent = "sent", Gap = "gap", Over = "over", Fork = "fork", Stale = "stale" }
    Role { None = "none", Reader = "reader", Member = "member", Admin = "admin", Owner = "owner" }
    Feature {
        Delivery = "delivery", Presence = "presence", Typing = "typing",
        Receipts = "receipts", History = "history"
    }
    FeatureState { Normal = "normal", Reduced = "reduced", Off = "off" }
    ConversationKind { Direct = "direct", Group = "group", Channel = "channel" }
}

/// The JSON name of a number on the wire; of an unknown one, `unknown`.
pub(crate) fn name_of<E: Named + TryFrom<i32>>(number: i32) -> &'static str {
    E::try_from(number).map_or("unknown", Named::name)
}
