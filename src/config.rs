//! The server's configuration: its fields, their defaults, and the layers they come from.
//!
//! Later layers win, key by key: defaults, the TOML file, `BIMIP_*` environment variables, command-line flags. In the
//! environment a key's levels are separated by two underscores (`BIMIP_QUIC__IDLE_TIMEOUT_MS`) and the items of a list by
//! commas. An empty variable counts as not set, except `BIMIP_CONFIG`, which the command line reads. Paths are relative to the
//! working directory.

mod check;
mod layers;
mod lb;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{limits, wire};

#[cfg(feature = "server")]
pub(crate) use check::bare_target;
#[cfg(feature = "server")]
pub(crate) use lb::from_hex;
pub use lb::{LbConfig, ServerId, ServerIdError};

/// Everything an operator can set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// UDP address of QUIC, and TCP address of the fallback. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the Prometheus endpoint and the health checks, over plain HTTP: keep it off the internet.
    pub metrics_listen: SocketAddr,
    /// Where messages, and in development the keys and certificates, are kept.
    pub data_dir: PathBuf,
    /// Domains that are served: a recipient in another domain is refused with 404. Empty: every domain is served.
    pub domains: Vec<String>,
    /// Development: create the certificates and the token key that are missing in `data_dir`, and use them.
    pub dev: bool,
    /// Host names and IP addresses that the development certificate is for, besides this machine's own, such as the address by
    /// which a phone in the same network reaches it.
    pub dev_names: Vec<String>,
    /// The server's name, which clients get in `SessionAccept`.
    pub server_name: String,
    /// The server's certificate.
    pub tls: TlsConfig,
    /// Who may sign tokens.
    pub auth: AuthConfig,
    /// The QUIC transport.
    pub quic: QuicConfig,
    /// TLS over TCP, for networks that drop UDP.
    pub tcp: TcpConfig,
    /// Signed-in devices.
    pub session: SessionConfig,
    /// What users see of each other.
    pub presence: PresenceConfig,
    /// Rate limits.
    pub limits: LimitsConfig,
    /// The message store.
    pub store: StoreConfig,
    /// How much of the logs is kept, and for how long.
    pub retention: RetentionConfig,
    /// Media messages.
    pub media: MediaConfig,
    /// What is written to standard error.
    pub log: LogConfig,
    /// Defaults of the client commands.
    pub client: ClientConfig,
    /// Defaults of `bimip token`.
    pub token: TokenConfig,
}

/// `[tls]`: set both or neither. Without them the server starts only with `dev`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with the certificate chain, the server's own first.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    pub key: Option<PathBuf>,
}

/// `[auth]`: whose tokens are accepted (protocol.md §5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// PEM files with public keys: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).
    pub keys: Vec<PathBuf>,
    /// JWKS file with public keys of the same kinds.
    pub jwks: Option<PathBuf>,
    /// File with the shared secret of HS256 tokens, at least 32 bytes. Absent: HS256 is refused.
    pub hs256_secret_file: Option<PathBuf>,
    /// What `iss` must be. Absent: not checked.
    pub issuer: Option<String>,
    /// What `aud` must be or contain. Absent: not checked.
    pub audience: Option<String>,
}

/// `[quic]`: the transport, with defaults for phones and chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuicConfig {
    /// Milliseconds of silence after which a connection is given up; the client's own value may be lower.
    pub idle_timeout_ms: u64,
    /// Milliseconds of silence after which the server sends a keep-alive packet; 0: never. Clients know their network and keep
    /// its bindings alive, and a packet from the server would wake a sleeping phone's radio.
    pub keep_alive_ms: u64,
    /// Bytes of one lane that a client may send ahead of the server's reading.
    pub stream_receive_window: u32,
    /// The same over all lanes of a connection; over TCP the socket's receive buffer.
    pub connection_receive_window: u32,
    /// Bytes sent to a device and not yet acknowledged by it; over TCP the socket's send buffer.
    pub send_window: u32,
    /// Connections at once; further ones are refused.
    pub max_connections: usize,
    /// Handshakes under way at once, over QUIC and over TCP each; a further one takes the place of one of the network with the
    /// most, or is refused.
    pub handshakes_max: usize,
    /// Number of handshakes under way from which on a new client must prove its address first; 0: always.
    pub handshakes_before_retry: usize,
    /// Handshakes a second with clients that have not proved their address; further ones must prove it first.
    pub handshakes_unproven_per_second: u32,
    /// Milliseconds of round-trip time assumed before the first measurement.
    pub initial_rtt_ms: u64,
    /// Congestion control towards devices.
    pub congestion: Congestion,
    /// Folder for a qlog trace of each connection. Absent: none are written.
    pub qlog_dir: Option<PathBuf>,
    /// A load balancer in front of the server.
    pub lb: LbConfig,
}

/// `[tcp]`: the fallback, on the port number of `listen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpConfig {
    /// Whether the fallback is available.
    pub enabled: bool,
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig { enabled: true }
    }
}

/// The congestion control, which decides how fast to send on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// RFC 9438: what the internet runs on, fair to its neighbours.
    #[default]
    Cubic,
    /// Follows measured bandwidth instead of loss: for paths that lose packets without being full.
    Bbr,
    /// RFC 9002's own algorithm.
    NewReno,
}

/// `[session]`: signed-in devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionConfig {
    /// Milliseconds without a frame from a client after which the server pings it (protocol.md §6).
    pub ping_interval_ms: u64,
    /// Longest frame, in bytes (protocol.md §2).
    pub max_frame_bytes: usize,
    /// Milliseconds within which a new connection must send `SessionOpen` (protocol.md §5).
    pub open_within_ms: u64,
    /// Milliseconds after which a message is released without its sender's answer (protocol.md §7).
    pub release_within_ms: u64,
}

/// `[presence]`: what users see of each other (protocol.md §12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PresenceConfig {
    /// Milliseconds for which a user whose last connection was lost is still shown as before.
    pub offline_grace_ms: u64,
    /// A device is told about a contact at most once in so many milliseconds; 0: of every change.
    pub interval_ms: u64,
    /// Milliseconds for which a location is held, in memory only.
    pub location_kept_ms: u64,
}

/// `[limits]`: rate limits. A session over a rate gets error 429 with the milliseconds to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Frames of one session.
    pub frames: Rate,
    /// Messages of one user, over all devices.
    pub messages: Rate,
    /// Awareness requests and changes of one session.
    pub awareness: Rate,
    /// Sign-ins from one address; all of an IPv6 /64 count as one.
    pub sign_ins: Rate,
    /// Connections from one address at once; further ones are refused. 0: no limit.
    pub connections_per_address: usize,
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a section with per_second and burst")]
pub struct Rate {
    /// In the long run, a second; 0: no limit.
    pub per_second: u32,
    /// At once, after a quiet time; 0: as much as `per_second`.
    pub burst: u32,
}

impl From<(u32, u32)> for Rate {
    fn from((per_second, burst): (u32, u32)) -> Rate {
        Rate { per_second, burst }
    }
}

/// `[store]`: the message store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Memory for the cache of what was read, in bytes.
    pub cache_bytes: u64,
}

/// `[retention]`: how much of the logs is kept (protocol.md §9). Anything older is deleted in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Days that an entry of a log is kept.
    pub days: u32,
    /// Entries that are kept of one user's log.
    pub entries_per_user: u64,
    /// Minutes from one pass over the store to the next.
    pub interval_minutes: u64,
}

/// `[media]`: media messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MediaConfig {
    /// https address that a media id is appended to (protocol.md §7). Absent: only full addresses are accepted.
    pub cdn_base: Option<String>,
}

/// `[log]`: what is written to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Filter: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module (`info,bimip::session=debug`).
    pub level: String,
    /// The form of its lines.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// [`LogFormat::Human`] on a terminal, else [`LogFormat::Json`].
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// `[client]`: defaults of the client commands, which their flags override.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// `host:port` of the server. Absent: `localhost`, on the port of `listen`.
    pub server: Option<String>,
    /// PEM file with the authority that the server's certificate must come from. Absent: the one in `data_dir`.
    pub ca: Option<PathBuf>,
    /// File with the token to sign in with. Absent: one is signed with the key in `data_dir`.
    pub token_file: Option<PathBuf>,
    /// The user to sign in as.
    #[serde(rename = "as")]
    pub as_eid: Option<String>,
    /// The device to sign in as.
    pub device: Option<String>,
    /// What to connect over.
    pub transport: ClientTransport,
    /// Folder for a qlog trace of each connection. Absent: none are written.
    pub qlog_dir: Option<PathBuf>,
}

/// What the client commands connect over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientTransport {
    /// QUIC, and TLS over TCP if QUIC gets no answer.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TLS over TCP alone.
    Tcp,
}

/// `[token]`: defaults of `bimip token`; its user and device default to those of `[client]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    /// How long a token lasts: a number and `s`, `m`, `h` or `d`.
    pub ttl: String,
    /// Space-separated scopes, as in `admin`.
    pub scope: Option<String>,
}

impl TokenConfig {
    /// `ttl` as a duration.
    ///
    /// # Errors
    /// [`ConfigError::Check`] if it is not a number with a unit, from one second to 3,650 days.
    pub fn ttl(&self) -> Result<Duration, ConfigError> {
        let wrong = || ConfigError::Check {
            key: "token.ttl",
            reason: format!("is {:?}, must be a number and s, m, h or d, from 1s to 3650d, as in 24h", self.ttl),
        };
        let unit = match self.ttl.as_bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 24 * 3600,
            _ => return Err(wrong()),
        };
        let number = &self.ttl[..self.ttl.len() - 1];
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        // Digits alone: `parse` accepts a sign, too.
        match seconds.filter(|_| number.bytes().all(|digit| digit.is_ascii_digit())) {
            Some(seconds) if (1..=3650 * 24 * 3600).contains(&seconds) => Ok(Duration::from_secs(seconds)),
            _ => Err(wrong()),
        }
    }
}

impl Config {
    /// Merges the layers and checks the result. `flags` serializes to a map of the keys that the command line set; a `None` in
    /// it counts as not set.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML, a key does not exist, or a value has the wrong type or cannot work.
    pub fn load(file: Option<&Path>, flags: impl Serialize) -> Result<Config, ConfigError> {
        Config::load_from(file, std::env::vars_os(), flags)
    }

    /// The same with the environment as an argument.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: impl Serialize,
    ) -> Result<Config, ConfigError> {
        let mut config = layers::merge(file, environment, flags)?;
        config.domains.iter_mut().for_each(|domain| domain.make_ascii_lowercase());
        config.check()?;
        Ok(config)
    }

    /// Checks whether the values make sense, alone and together. Files that they name are not opened.
    ///
    /// # Errors
    /// [`ConfigError::Check`] for the first value that cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        check::check(self)
    }

    /// The configuration as a TOML file that loads to the same configuration. Optional keys that are not set are left out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form: strings, numbers, lists and tables")
    }
}

/// What is wrong with the configuration, in one line that names the key and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not TOML: line {line}: {reason}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A key that does not exist, or a value of the wrong type.
    #[error("{key} in {origin}: {reason}")]
    Value {
        /// The key, as its layer spells it.
        key: String,
        /// The layer.
        origin: String,
        /// Why.
        reason: String,
    },
    /// A value that cannot work.
    #[error("{key} {reason}")]
    Check {
        /// The key, with its levels.
        key: &'static str,
        /// What it must be.
        reason: String,
    },
}

impl Default for Config {
    fn default() -> Config {
        Config {
            // Not [::], which fails to bind where IPv6 is off.
            listen: (Ipv4Addr::UNSPECIFIED, wire::DEFAULT_PORT).into(),
            metrics_listen: (Ipv4Addr::LOCALHOST, 9464).into(),
            data_dir: "bimip-data".into(),
            domains: Vec::new(),
            dev: false,
            dev_names: Vec::new(),
            server_name: "bimip".to_owned(),
            tls: TlsConfig::default(),
            auth: AuthConfig::default(),
            quic: QuicConfig::default(),
            tcp: TcpConfig::default(),
            session: SessionConfig::default(),
            presence: PresenceConfig::default(),
            limits: LimitsConfig::default(),
            store: StoreConfig::default(),
            retention: RetentionConfig::default(),
            media: MediaConfig::default(),
            log: LogConfig::default(),
            client: ClientConfig::default(),
            token: TokenConfig::default(),
        }
    }
}

impl Default for QuicConfig {
    fn default() -> QuicConfig {
        QuicConfig {
            idle_timeout_ms: millis(limits::IDLE_TIMEOUT),
            keep_alive_ms: 0,
            stream_receive_window: limits::STREAM_RECEIVE_WINDOW,
            connection_receive_window: limits::CONNECTION_RECEIVE_WINDOW,
            send_window: limits::SEND_WINDOW,
            max_connections: limits::CONNECTIONS_MAX,
            handshakes_max: limits::HANDSHAKES_MAX,
            handshakes_before_retry: limits::HANDSHAKES_BEFORE_RETRY,
            handshakes_unproven_per_second: limits::HANDSHAKES_UNPROVEN_PER_SECOND,
            initial_rtt_ms: millis(limits::INITIAL_RTT),
            congestion: Congestion::default(),
            qlog_dir: None,
            lb: LbConfig::default(),
        }
    }
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig {
            ping_interval_ms: millis(limits::PING_INTERVAL),
            max_frame_bytes: limits::FRAME_BYTES_MAX,
            open_within_ms: millis(limits::SESSION_OPEN_WITHIN),
            release_within_ms: millis(limits::RELEASE_WITHIN),
        }
    }
}

impl Default for PresenceConfig {
    fn default() -> PresenceConfig {
        PresenceConfig {
            offline_grace_ms: millis(limits::OFFLINE_GRACE),
            interval_ms: millis(limits::PRESENCE_INTERVAL),
            location_kept_ms: millis(limits::LOCATION_KEPT),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            frames: limits::FRAMES_RATE.into(),
            messages: limits::MESSAGES_RATE.into(),
            awareness: limits::AWARENESS_RATE.into(),
            sign_ins: limits::SIGN_INS_RATE.into(),
            connections_per_address: limits::CONNECTIONS_PER_ADDRESS_MAX,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig { cache_bytes: limits::STORE_CACHE_BYTES }
    }
}

impl Default for RetentionConfig {
    fn default() -> RetentionConfig {
        RetentionConfig {
            days: limits::RETENTION_DAYS,
            entries_per_user: limits::RETENTION_ENTRIES_PER_USER,
            interval_minutes: limits::RETENTION_INTERVAL.as_secs() / 60,
        }
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        // quinn_proto warns about single packets, which anybody can send at any rate.
        let level = "info,fjall=warn,lsm_tree=warn,quinn_proto=error".to_owned();
        LogConfig { level, format: LogFormat::default() }
    }
}

impl Default for TokenConfig {
    fn default() -> TokenConfig {
        TokenConfig { ttl: "24h".to_owned(), scope: None }
    }
}

const fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_numbers_of_the_protocol() {
        let Config { listen, session, presence, limits: rates, retention, .. } = Config::default();
        // protocol.md §1, §2, §5, §6, §7.
        assert_eq!((listen.port(), session.max_frame_bytes), (4433, 64 * 1024));
        let times = (session.open_within_ms, session.ping_interval_ms, session.release_within_ms);
        assert_eq!(times, (10_000, 30_000, 1_000));
        assert_eq!(limits::LOCAL_IDS_KEPT, Duration::from_secs(7 * 24 * 3600));
        // protocol.md §9, §12.
        assert_eq!((retention.days, retention.entries_per_user), (30, 200_000));
        let times = (presence.offline_grace_ms, presence.interval_ms, presence.location_kept_ms);
        assert_eq!(times, (15_000, 500, 600_000));
        // protocol.md §16.
        let rates = [rates.frames, rates.messages, rates.awareness, rates.sign_ins];
        assert_eq!(rates.map(|rate| rate.per_second), [5_000, 500, 50, 500]);
        assert_eq!(rates.map(|rate| rate.burst), [50_000, 20_000, 5_000, 10_000]);
        assert_eq!((limits::DEVICES_PER_USER_MAX, limits::SUBSCRIBERS_PER_USER_MAX), (16, 5_000));
        assert_eq!((limits::HISTORY_PAGE_MAX, limits::HISTORY_PAGE_DEFAULT), (200, 50));
        assert_eq!(limits::PING_RELAY_WITHIN, Duration::from_secs(5));
        assert_eq!(limits::TOKEN_LEEWAY, Duration::from_secs(30));
    }
}
