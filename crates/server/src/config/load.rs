//! Gathers settings from their four sources and remembers which one won.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, validate};

/// Where a setting's value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Why settings were refused: nothing was started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file isn't there or can't be read.
    #[error("can't read the configuration file {path}: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file isn't TOML.
    #[error("{path} is not valid TOML: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// No such setting.
    #[error("{origin}: there is no setting \"{name}\"{}", nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    Unknown {
        /// Its source.
        origin: String,
        /// The name.
        name: String,
        /// The valid name most like it.
        nearest: Option<String>,
    },
    /// The value doesn't fit.
    #[error("{origin}: {name}: {reason}")]
    Invalid {
        /// Its source.
        origin: String,
        /// The setting.
        name: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// What the command line says about settings.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config FILE`; none: `tidings.toml` in the working folder, if there is one.
    pub file: Option<PathBuf>,
    /// Setting, value as written, and the flag it came by.
    pub values: Vec<(String, String, String)>,
}

/// The effective settings and their origins.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// By full name, e.g. `server.listen`.
    pub origins: BTreeMap<String, Origin>,
    values: BTreeMap<String, Value>,
}

impl fmt::Display for Loaded {
    /// One setting a line: name, value, where it came from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.values.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &self.values {
            let origin = self.origins.get(name).unwrap_or(&Origin::Default);
            let shown = match value {
                Value::String(text) if is_secret(name) && !text.is_empty() => "\"***\"".to_owned(),
                value => value.to_string(),
            };
            writeln!(f, "{name:width$} = {shown}  # {origin}")?;
        }
        Ok(())
    }
}

/// Names of environment variables that are no settings: the folder of this prefix is shared with tools.
const NOT_SETTINGS: [&str; 2] = ["TIDINGS_CONFIG", "TIDINGS_API_KEY"];

/// Reads all sources; `environment` gives every variable of the process.
///
/// # Errors
/// The first setting that is unknown or doesn't fit; nothing is changed by it.
pub fn load(
    flags: &Flags,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let defaults = Table::try_from(Config::default()).expect("the defaults are plain values");
    let mut values = BTreeMap::new();
    flatten("", &defaults, &mut values, &|_, _| false);
    let known: Vec<String> = values.keys().cloned().collect();
    let mut origins: BTreeMap<String, Origin> = known
        .iter()
        .map(|name| (name.clone(), Origin::Default))
        .collect();
    let mut put = |name: String, value: Value, origin: Origin| -> Result<(), ConfigError> {
        if !known.contains(&name) {
            let nearest = nearest(&name, &known);
            return Err(ConfigError::Unknown {
                origin: origin.to_string(),
                name,
                nearest,
            });
        }
        let value = fit(&values[&name], value).map_err(|reason| ConfigError::Invalid {
            origin: origin.to_string(),
            name: name.clone(),
            reason,
        })?;
        values.insert(name.clone(), value);
        origins.insert(name, origin);
        Ok(())
    };

    let environment: Vec<(String, String)> = environment
        .into_iter()
        .filter(|(name, _)| name.starts_with("TIDINGS_"))
        .collect();
    let named = flags.file.clone().or_else(|| {
        environment
            .iter()
            .find(|(name, _)| name == "TIDINGS_CONFIG")
            .map(|(_, v)| v.into())
    });
    if let Some(path) = named.or_else(|| Some(PathBuf::from("tidings.toml")).filter(|p| p.exists()))
    {
        let mut found = BTreeMap::new();
        flatten("", &read(&path)?, &mut found, &|name, _| {
            known.iter().any(|k| k == name)
        });
        for (name, value) in found {
            put(name, value, Origin::File(path.clone()))?;
        }
    }
    for (variable, value) in environment {
        if NOT_SETTINGS.contains(&variable.as_str()) {
            continue;
        }
        let name = variable["TIDINGS_".len()..]
            .to_lowercase()
            .replace("__", ".");
        let (name, value) = match name.strip_suffix("_file") {
            Some(secret) if is_secret(secret) => (secret.to_owned(), read_secret(&value)?),
            _ => (name, value),
        };
        put(name, Value::String(value), Origin::Environment(variable))?;
    }
    for (name, value, flag) in &flags.values {
        put(
            name.clone(),
            Value::String(value.clone()),
            Origin::Flag(flag.clone()),
        )?;
    }

    let config: Config = nest(&values).try_into().map_err(|error: toml::de::Error| {
        let name = error.message().to_owned();
        ConfigError::Invalid {
            origin: "settings".into(),
            name: "value".into(),
            reason: name,
        }
    })?;
    validate(&config).map_err(|(name, reason)| {
        let origin = origins
            .get(&name)
            .map_or("settings".to_owned(), Origin::to_string);
        ConfigError::Invalid {
            origin,
            name,
            reason,
        }
    })?;
    Ok(Loaded {
        config,
        origins,
        values,
    })
}

/// Whether a setting must not be shown; it may also come from a file that `TIDINGS_…_FILE` names.
fn is_secret(name: &str) -> bool {
    name.ends_with("password") || name.ends_with("secret_key")
}

fn read_secret(path: &str) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
        path: path.into(),
        reason: error.to_string(),
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    text.parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// Full names and values; a table that is itself a setting stays whole.
fn flatten(
    prefix: &str,
    table: &Table,
    into: &mut BTreeMap<String, Value>,
    whole: &dyn Fn(&str, &Value) -> bool,
) {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            Value::Table(inner) if !whole(&name, value) => flatten(&name, inner, into, whole),
            _ => _ = into.insert(name, value.clone()),
        }
    }
}

fn nest(values: &BTreeMap<String, Value>) -> Table {
    let mut root = Table::new();
    for (name, value) in values {
        let (section, key) = name.split_once('.').expect("every setting is in a section");
        let table = root
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(table) = table {
            table.insert(key.to_owned(), value.clone());
        }
    }
    root
}

/// The value in the type of the setting it is for; text from the environment and flags is parsed.
fn fit(like: &Value, value: Value) -> Result<Value, String> {
    match (like, value) {
        (Value::Integer(_), Value::String(text)) => text
            .trim()
            .parse()
            .map(Value::Integer)
            .map_err(|_| format!("\"{text}\" is not a whole number")),
        (Value::Boolean(_), Value::String(text)) => text
            .trim()
            .parse()
            .map(Value::Boolean)
            .map_err(|_| format!("\"{text}\" is not true or false")),
        (Value::Array(_), Value::String(text)) => {
            if text.trim_start().starts_with('[') {
                let table: Table = format!("v = {text}")
                    .parse()
                    .map_err(|_| format!("\"{text}\" is not a TOML array"))?;
                return Ok(table["v"].clone());
            }
            Ok(Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .map(|t| Value::String(t.to_owned()))
                    .collect(),
            ))
        }
        (like, value) if like.same_type(&value) => Ok(value),
        (like, value) => Err(format!(
            "{value} is of type {}, not {}",
            value.type_str(),
            like.type_str()
        )),
    }
}

/// The valid name most like this one, if any is near enough to be a slip.
fn nearest(name: &str, known: &[String]) -> Option<String> {
    let last = |n: &str| n.rsplit('.').next().unwrap_or(n).to_owned();
    let distance = |k: &String| {
        strsim::damerau_levenshtein(name, k)
            .min(strsim::damerau_levenshtein(&last(name), &last(k)) + 1)
    };
    known
        .iter()
        .map(|k| (distance(k), k))
        .min()
        .filter(|(d, _)| *d <= name.len().max(6) / 2)
        .map(|(_, k)| k.clone())
}
