//! Reads the layers of the configuration and merges them, so that an error can name the layer that a value came from.

use std::ffi::OsString;
use std::path::Path;

use figment::error::{Actual, Kind};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;

use super::{Config, ConfigError};

/// What the name of every variable begins with.
const PREFIX: &str = "BIMIP_";
/// The variable with the path of the configuration file itself; the command line reads it.
const FILE_VARIABLE: &str = "CONFIG";
/// Separates the levels of a key in a variable's name.
const LEVEL: &str = "__";
const ENVIRONMENT: &str = "the environment";
const COMMAND_LINE: &str = "the command line";

/// Merges defaults, file, environment and flags in this order; for each key the last value wins.
pub(super) fn merge(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: impl Serialize,
) -> Result<Config, ConfigError> {
    let defaults = dict(Config::default())?;
    let environment = from_environment(environment, &Value::from(defaults.clone()))?;
    let mut figment = Figment::from(Layer { origin: "the defaults".to_owned(), values: defaults });
    if let Some(path) = file {
        figment = figment.merge(Layer { origin: path.display().to_string(), values: from_file(path)? });
    }
    figment
        .merge(Layer { origin: ENVIRONMENT.to_owned(), values: environment })
        .merge(Layer { origin: COMMAND_LINE.to_owned(), values: from_flags(flags)? })
        .extract()
        .map_err(explain)
}

/// One source of values.
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn from_file(path: &Path) -> Result<Dict, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start.min(text.len()));
        ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + text.bytes().take(before).filter(|&b| b == b'\n').count(),
            reason: error.message().lines().collect::<Vec<_>>().join(", "),
        }
    })?;
    dict(table)
}

fn from_flags(flags: impl Serialize) -> Result<Dict, ConfigError> {
    // Only a path can fail, and the error does not say which.
    dict(flags).map_err(|_| ConfigError::Value {
        key: "a path".to_owned(),
        origin: COMMAND_LINE.to_owned(),
        reason: "is not UTF-8".to_owned(),
    })
}

/// A variable has no type of its own. It gets the type of the key's default, so that `BIMIP_CLIENT__DEVICE=1` is a text and not
/// a number.
fn from_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    defaults: &Value,
) -> Result<Dict, ConfigError> {
    let mut values = Dict::new();
    for (name, text) in environment {
        let Ok(name) = name.into_string() else { continue };
        let Some(key) = name.strip_prefix(PREFIX).filter(|key| *key != FILE_VARIABLE) else { continue };
        let Ok(text) = text.into_string() else {
            let reason = "is not UTF-8".to_owned();
            return Err(ConfigError::Value { key: name, origin: ENVIRONMENT.to_owned(), reason });
        };
        if text.is_empty() || is_service_link(key, &text) {
            continue;
        }
        let levels: Vec<String> = key.split(LEVEL).map(str::to_ascii_lowercase).collect();
        let value = match defaults.find_ref(&levels.join(".")) {
            Some(Value::Dict(..)) => {
                let reason = format!("is a section: add a key, as in {name}{LEVEL}KEY");
                return Err(ConfigError::Value { key: name, origin: ENVIRONMENT.to_owned(), reason });
            }
            Some(Value::Bool(..)) => match text.as_str() {
                "true" | "1" | "yes" | "on" => true.into(),
                "false" | "0" | "no" | "off" => false.into(),
                _ => text.into(),
            },
            Some(Value::Num(..)) => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
            Some(Value::Array(..)) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>().into()
            }
            _ => text.into(),
        };
        insert(&mut values, &levels, value);
    }
    Ok(values)
}

/// Whether Kubernetes may have set the variable for a service called `bimip` or `bimip-…`, as in `BIMIP_SERVICE_HOST` or
/// `BIMIP_METRICS_PORT_9464_TCP_ADDR`. No key of the configuration looks like that.
fn is_service_link(key: &str, text: &str) -> bool {
    // With an underscore in front the service `bimip` looks like all others.
    let name = format!("_{key}");
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    // An address, as in `tcp://10.0.0.1:9464`. A number is a misspelt key of the operator's.
    if name.ends_with("_PORT") && text.contains("://") {
        return true;
    }
    // `_PORT_9464_TCP`, alone or with a part of the address.
    name.match_indices("_PORT_").any(|(at, port)| {
        let mut words = name[at + port.len()..].split('_');
        words.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && words.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
            && words.next().is_none_or(|part| ["PROTO", "PORT", "ADDR"].contains(&part))
            && words.next().is_none()
    })
}

fn insert(values: &mut Dict, levels: &[String], value: Value) {
    match levels {
        [] => {}
        [last] => {
            values.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let section = values.entry(first.clone()).or_insert_with(|| Dict::new().into());
            if !matches!(section, Value::Dict(..)) {
                *section = Dict::new().into();
            }
            if let Value::Dict(_, inner) = section {
                insert(inner, rest, value);
            }
        }
    }
}

/// A serializable map as a layer's values, without those that are `None`.
fn dict(values: impl Serialize) -> Result<Dict, ConfigError> {
    match Value::serialize(values).map_err(explain)? {
        Value::Dict(_, mut dict) => {
            drop_empty(&mut dict);
            Ok(dict)
        }
        _ => Ok(Dict::new()),
    }
}

fn drop_empty(dict: &mut Dict) {
    dict.retain(|_, value| !matches!(value, Value::Empty(..)));
    for value in dict.values_mut() {
        if let Value::Dict(_, inner) = value {
            drop_empty(inner);
        }
    }
}

fn explain(error: figment::Error) -> ConfigError {
    let origin = error.metadata.as_ref().map_or_else(|| "the configuration".to_owned(), |m| m.name.to_string());
    let mut path = error.path.clone();
    let reason = match &error.kind {
        Kind::UnknownField(field, known) => {
            if path.last() != Some(field) {
                path.push(field.clone());
            }
            format!("no such key; there are {}", known.join(", "))
        }
        Kind::UnknownVariant(found, known) => format!("is {found}, must be one of {}", known.join(", ")),
        Kind::InvalidType(found, wanted) | Kind::InvalidValue(found, wanted) => {
            let wanted = match wanted.to_string().as_str() {
                "u8" => format!("a whole number from 0 to {}", u8::MAX),
                "u16" => format!("a whole number from 0 to {}", u16::MAX),
                "u32" => format!("a whole number from 0 to {}", u32::MAX),
                "u64" | "usize" => "a whole number, 0 or more".to_owned(),
                other => other.to_owned(),
            };
            let found = match found {
                Actual::Unsigned(number) => number.to_string(),
                Actual::Signed(number) => number.to_string(),
                other => other.to_string(),
            };
            format!("is {found}, must be {wanted}")
        }
        Kind::Message(message) if message.contains("socket address") => {
            "must be an IP address and a port, as in 0.0.0.0:4433 or [::]:4433".to_owned()
        }
        other => other.to_string().replace('\n', ", "),
    };
    let key = if origin == ENVIRONMENT {
        format!("{PREFIX}{}", path.join(LEVEL).to_ascii_uppercase())
    } else {
        path.join(".")
    };
    ConfigError::Value { key, origin, reason }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use super::*;
    use crate::config::Congestion;

    const NOTHING: [(OsString, OsString); 0] = [];

    fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[derive(Serialize, Default)]
    struct Flags {
        listen: Option<String>,
        dev: Option<bool>,
        domains: Option<Vec<String>>,
    }

    fn no_flags() -> Flags {
        Flags::default()
    }

    #[test]
    fn what_is_not_utf8_is_refused_by_its_name_if_it_is_ours() {
        #[derive(Serialize)]
        struct Flags {
            data_dir: PathBuf,
        }
        let broken = OsString::from_vec(b"/x/\xff".to_vec());
        let load = |name: &str| Config::load_from(None, [(name.into(), broken.clone())], ());
        let refused = load("BIMIP_DATA_DIR").unwrap_err().to_string();
        assert_eq!(refused, "BIMIP_DATA_DIR in the environment: is not UTF-8");
        // The file's own name may be anything.
        for other in ["BIMIP_CONFIG", "PATH"] {
            assert_eq!(load(other).unwrap(), Config::default());
        }
        let flags = Flags { data_dir: broken.clone().into() };
        let refused = Config::load_from(None, NOTHING, flags).unwrap_err().to_string();
        assert_eq!(refused, "a path in the command line: is not UTF-8");
    }

    #[test]
    fn without_any_layer_the_defaults_stand() {
        assert_eq!(Config::load_from(None, NOTHING, no_flags()).unwrap(), Config::default());
        assert_eq!(Config::load_from(None, NOTHING, ()).unwrap(), Config::default());
    }

    #[test]
    fn a_later_layer_wins_key_by_key() {
        let file = file("listen = '127.0.0.1:1'\n[quic]\nidle_timeout_ms = 50_000\nsend_window = 300_000\n");
        let env = variables(&[("BIMIP_LISTEN", "127.0.0.1:2"), ("BIMIP_QUIC__IDLE_TIMEOUT_MS", "60000")]);
        let flags = Flags { listen: Some("127.0.0.1:3".to_owned()), ..no_flags() };
        let config = Config::load_from(Some(file.path()), env, flags).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.quic.idle_timeout_ms, 60_000);
        assert_eq!(config.quic.send_window, 300_000);
        assert_eq!(config.session, Config::default().session);
    }

    #[test]
    fn a_variable_takes_the_type_of_its_key() {
        let env = variables(&[
            ("BIMIP_DOMAINS", "Example.org, two.example,"),
            ("BIMIP_AUTH__KEYS", "a.pem,b.pem"),
            ("BIMIP_DEV", "1"),
            ("BIMIP_SERVER_NAME", "42"),
            ("BIMIP_CLIENT__DEVICE", "7"),
            ("BIMIP_CLIENT__AS", "alice@localhost"),
            ("BIMIP_QUIC__CONGESTION", "bbr"),
            ("BIMIP_TLS__KEY", ""),
        ]);
        let config = Config::load_from(None, env, no_flags()).unwrap();
        assert_eq!(config.domains, ["example.org", "two.example"]);
        assert_eq!(config.auth.keys.len(), 2);
        assert!(config.dev);
        assert_eq!(config.server_name, "42");
        assert_eq!(config.client.device.as_deref(), Some("7"));
        assert_eq!(config.client.as_eid.as_deref(), Some("alice@localhost"));
        assert_eq!(config.quic.congestion, Congestion::Bbr);
        assert_eq!(config.tls.key, None);
    }

    #[test]
    fn a_server_id_comes_from_each_layer_and_a_wrong_one_is_named() {
        let stated = file("[quic.lb]\nserver_id = '00c3'\nconfig_id = 2\nnonce_bytes = 14\nkey_file = 'lb.key'\n");
        let config = Config::load_from(Some(stated.path()), NOTHING, no_flags()).unwrap();
        let lb = config.quic.lb.clone();
        assert_eq!(lb.server_id.unwrap().to_string(), "00c3");
        assert_eq!((lb.config_id, lb.nonce_bytes, lb.key_file), (2, 14, Some("lb.key".into())));
        let printed = file(&config.to_toml());
        assert_eq!(Config::load_from(Some(printed.path()), NOTHING, no_flags()).unwrap(), config);

        // Only digits, but a text.
        let env = variables(&[("BIMIP_QUIC__LB__SERVER_ID", "0012"), ("BIMIP_QUIC__LB__CONFIG_ID", "6")]);
        let lb = Config::load_from(Some(stated.path()), env.clone(), no_flags()).unwrap().quic.lb;
        assert_eq!((lb.server_id.unwrap().to_string(), lb.config_id, lb.nonce_bytes), ("0012".to_owned(), 6, 14));
        let flags: toml::Table = toml::from_str("quic.lb.server_id = 'ab'").unwrap();
        let lb = Config::load_from(Some(stated.path()), env, flags).unwrap().quic.lb;
        assert_eq!((lb.server_id.unwrap().to_string(), lb.config_id), ("ab".to_owned(), 6));

        let message = |file: Option<&Path>, env: &[(&str, &str)]| {
            Config::load_from(file, variables(env), no_flags()).unwrap_err().to_string()
        };
        let reason = "must be 1 to 11 bytes in hexadecimal (fewer with a longer nonce), as in \"a1\" or \"00c3\"";
        assert_eq!(
            message(None, &[("BIMIP_QUIC__LB__SERVER_ID", "c")]),
            format!("BIMIP_QUIC__LB__SERVER_ID in the environment: {reason}")
        );
        let odd = file("[quic.lb]\nserver_id = 'node-1'\n");
        assert_eq!(message(Some(odd.path()), &[]), format!("quic.lb.server_id in {}: {reason}", odd.path().display()));
        let number = file("[quic.lb]\nserver_id = 12\n");
        let refused = message(Some(number.path()), &[]);
        assert!(refused.starts_with(&format!("quic.lb.server_id in {}: ", number.path().display())), "{refused}");
        assert!(refused.contains("must be a string"), "{refused}");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let env = variables(&[
            ("BIMIP_CONFIG", "x.toml"),
            ("BIMIP_SERVICE_HOST", "10.0.0.1"),
            ("BIMIP_PORT_4433_UDP", "udp://10.0.0.1:4433"),
            ("BIMIP_PORT", "udp://10.0.0.1:4433"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(Config::load_from(None, env, no_flags()).unwrap(), Config::default());
    }

    /// What Kubernetes sets in each pod beside services called `bimip-metrics` and `bimip-2`, with ports that have names.
    const SERVICE_LINKS: [(&str, &str); 11] = [
        ("BIMIP_METRICS_SERVICE_HOST", "10.0.0.2"),
        ("BIMIP_METRICS_SERVICE_PORT", "9464"),
        ("BIMIP_METRICS_SERVICE_PORT_HTTP_METRICS", "9464"),
        ("BIMIP_METRICS_PORT", "tcp://10.0.0.2:9464"),
        ("BIMIP_METRICS_PORT_9464_TCP", "tcp://10.0.0.2:9464"),
        ("BIMIP_METRICS_PORT_9464_TCP_PROTO", "tcp"),
        ("BIMIP_METRICS_PORT_9464_TCP_PORT", "9464"),
        ("BIMIP_METRICS_PORT_9464_TCP_ADDR", "10.0.0.2"),
        ("BIMIP_2_PORT", "udp://[fd00::2]:4433"),
        ("BIMIP_2_PORT_4433_UDP", "udp://[fd00::2]:4433"),
        ("BIMIP_2_PORT_4433_UDP_ADDR", "fd00::2"),
    ];

    #[test]
    fn services_beside_the_server_are_no_configuration() {
        let config = Config::load_from(None, variables(&SERVICE_LINKS), no_flags());
        assert_eq!(config.unwrap(), Config::default());
        for misspelt in
            ["BIMIP_METRICS_PORT", "BIMIP_PORT", "BIMIP_PORT_4433", "BIMIP_SERVICE", "BIMIP_QUIC__PORT_1_TCP_X"]
        {
            let refused =
                Config::load_from(None, variables(&[(misspelt, "4433")]), no_flags()).unwrap_err().to_string();
            assert!(refused.starts_with(misspelt), "{refused}");
        }
    }

    /// The variables of all keys below `value`, those without a default included.
    fn names_below(prefix: &str, value: &Value) -> Vec<String> {
        let Value::Dict(_, inner) = value else { return vec![prefix.to_owned()] };
        let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}{LEVEL}{key}") };
        inner.iter().flat_map(|(key, value)| names_below(&name(&key.to_ascii_uppercase()), value)).collect()
    }

    #[test]
    fn no_key_looks_like_what_kubernetes_sets() {
        let names = names_below("", &Value::serialize(Config::default()).unwrap());
        for known in ["LISTEN", "TLS__KEY", "QUIC__LB__KEY_FILE", "LIMITS__SIGN_INS__PER_SECOND", "CLIENT__AS"] {
            assert!(names.iter().any(|name| name == known), "{known} is not among {names:?}");
        }
        for name in names {
            assert!(!is_service_link(&name, "tcp://10.0.0.1:4433"), "{name}");
        }
    }

    #[test]
    fn an_error_names_the_key_and_its_layer_in_one_line() {
        let message = |file: Option<&Path>, env: &[(&str, &str)]| {
            let message = Config::load_from(file, variables(env), no_flags()).unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            message
        };
        let unknown = message(None, &[("BIMIP_QUIC__IDEL", "1")]);
        assert!(unknown.starts_with("BIMIP_QUIC__IDEL in the environment: no such key; there are "), "{unknown}");
        let unknown = message(None, &[("BIMIP_LISTEM", "1")]);
        assert!(unknown.starts_with("BIMIP_LISTEM in the environment: no such key"), "{unknown}");
        let section = message(None, &[("BIMIP_QUIC", "1")]);
        assert_eq!(section, "BIMIP_QUIC in the environment: is a section: add a key, as in BIMIP_QUIC__KEY");
        let wrong = message(None, &[("BIMIP_QUIC__SEND_WINDOW", "many")]);
        let range = "must be a whole number from 0 to 4294967295";
        assert_eq!(wrong, format!("BIMIP_QUIC__SEND_WINDOW in the environment: is string \"many\", {range}"));
        let wrong = message(None, &[("BIMIP_QUIC__SEND_WINDOW", "5000000000")]);
        assert_eq!(wrong, format!("BIMIP_QUIC__SEND_WINDOW in the environment: is 5000000000, {range}"));
        let negative = file("[quic]\nsend_window = -1\n");
        let wrong = message(Some(negative.path()), &[]);
        assert!(wrong.starts_with("quic.send_window in ") && wrong.ends_with(&format!(": is -1, {range}")), "{wrong}");
        let rate = message(None, &[("BIMIP_LIMITS__SIGN_INS", "500")]);
        assert_eq!(
            rate,
            "BIMIP_LIMITS__SIGN_INS in the environment: is a section: add a key, as in BIMIP_LIMITS__SIGN_INS__KEY"
        );
        let rate = file("[limits]\nsign_ins = 500\n");
        let told = message(Some(rate.path()), &[]);
        assert!(told.ends_with(": is 500, must be a section with per_second and burst"), "{told}");
        let address = message(None, &[("BIMIP_LISTEN", "localhost:4433")]);
        assert!(address.starts_with("BIMIP_LISTEN in the environment: must be an IP address and a port"), "{address}");

        let typo = file("[quic]\nidel = 1\n");
        let unknown = message(Some(typo.path()), &[]);
        assert!(unknown.starts_with(&format!("quic.idel in {}: no such key", typo.path().display())), "{unknown}");
        let broken = file("dev = true\nlisten = \n");
        let syntax = message(Some(broken.path()), &[]);
        assert!(syntax.contains("is not TOML: line 2: "), "{syntax}");
        let absent = message(Some(Path::new("/nowhere/bimip.toml")), &[]);
        assert!(absent.starts_with("cannot read the configuration file /nowhere/bimip.toml: "), "{absent}");
    }

    #[test]
    fn the_printed_configuration_loads_to_itself() {
        let env = variables(&[("BIMIP_DOMAINS", "a.example"), ("BIMIP_MEDIA__CDN_BASE", "https://cdn.example/")]);
        let config = Config::load_from(None, env, no_flags()).unwrap();
        let printed = file(&config.to_toml());
        assert_eq!(Config::load_from(Some(printed.path()), NOTHING, no_flags()).unwrap(), config);
    }
}
