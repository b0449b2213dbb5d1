//! How client commands find the server, an identity and a token: flags override `[client]`, which overrides the data
//! directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::options::ConfigFile;
use super::{Failure, Usage};
use crate::auth::dev::DevFiles;
use crate::auth::{Grant, Signer};
use crate::client::{Builder, CloseReason, Device, Session, State, TokenError, Transport, Transports};
use crate::clock::Now;
use crate::config::{ClientTransport, Config};
use crate::transport::qlog::Traces;
use crate::wire::{CloseCode, DeviceId, Eid};

/// What an operator does about a server that refuses connections.
pub(super) const FULL: &str = "the server is full (quic.max_connections), or this address has too many connections \
    (limits.connections_per_address) or handshakes (quic.handshakes_max): its bimip_handshakes_refused_total, \
    bimip_rate_limited_total{limit=\"connections\"} and bimip_queue_depth{queue=\"connections\"} say which";

/// Whether a QUIC connection failed because the server had no place for it.
pub(super) fn is_full(error: &str) -> bool {
    // QUIC's name of CONNECTION_REFUSED, as quinn words it.
    error.contains("refused to accept a new connection")
}

/// Where and as whom a client command signs in.
#[derive(clap::Args)]
pub(super) struct Connection {
    #[command(flatten)]
    file: ConfigFile,
    /// User to sign in as, local@domain [client.as]
    #[arg(long = "as", value_name = "EID")]
    as_eid: Option<Eid>,
    /// Device to sign in as; each has its own position in the user's log [client.device, else one for each command]
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// The server [client.server, else localhost on the port of `listen`]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// PEM file with the authority that issued the server's certificate [client.ca, else the data directory's
    /// certs/ca.pem]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the token [client.token_file, else one is signed with the data directory's keys/token.key]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Transport: quic or tcp alone, or auto, which falls back to TCP where QUIC gets no answer [client.transport, else
    /// auto]
    #[arg(long, value_name = "auto|quic|tcp", value_parser = ["auto", "quic", "tcp"], hide_possible_values = true)]
    transport: Option<String>,
    /// Data directory of a development server [bimip-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Folder for a qlog trace of each connection [client.qlog_dir, else no traces]
    #[arg(long = "qlog", value_name = "DIR")]
    qlog_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Flags {
    data_dir: Option<PathBuf>,
    client: ClientFlags,
}

#[derive(Serialize)]
struct ClientFlags {
    server: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    #[serde(rename = "as")]
    as_eid: Option<String>,
    device: Option<String>,
    transport: Option<String>,
    qlog_dir: Option<PathBuf>,
}

/// Everything a device needs to sign in.
pub(super) struct Account {
    pub(super) eid: Eid,
    pub(super) device: DeviceId,
    /// The server's name in messages to the user.
    pub(super) server: String,
    /// The address to dial, and the name that the certificate must have if it is not the host in that address.
    dial: (String, Option<&'static str>),
    ca: PathBuf,
    token: Token,
    transports: Transports,
    traces: Option<Traces>,
}

#[derive(Clone)]
enum Token {
    /// Read again for each sign-in, so that the file can be replaced by a renewed token.
    File(PathBuf),
    /// Signed anew for each sign-in.
    Signed(Arc<Signer>, Grant),
}

impl Connection {
    /// `device` is the command's default device id. It differs between commands, so that two commands of one user do
    /// not replace each other's session.
    pub(super) fn account(self, device: &'static str) -> Result<Account, Failure> {
        let config = self.file.load(Flags {
            data_dir: self.data_dir,
            client: ClientFlags {
                server: self.server,
                ca: self.ca,
                token_file: self.token_file,
                as_eid: self.as_eid.map(|eid| eid.to_string()),
                device: self.device.map(|device| device.to_string()),
                transport: self.transport,
                qlog_dir: self.qlog_dir,
            },
        })?;
        let Some(eid) = &config.client.as_eid else {
            return Err(Usage("no user: give --as local@domain").into());
        };
        let eid = Eid::parse(eid)?;
        let device = DeviceId::parse(config.client.device.as_deref().unwrap_or(device))?;
        let files = DevFiles::in_data_dir(&config.data_dir);

        let token = match &config.client.token_file {
            Some(path) => Token::File(path.clone()),
            None if files.token_key.exists() => {
                let grant =
                    Grant { eid: eid.clone(), device: Some(device.clone()), ttl: config.token.ttl()?, scope: None };
                Token::Signed(Arc::new(Signer::from_pem_file(&files.token_key)?), grant)
            }
            None => {
                return Err(Failure::new(
                    anyhow!("no development key in {}", config.data_dir.join("keys").display()),
                    "start `bimip serve --dev` first, or give --data-dir or --token-file",
                ));
            }
        };
        // Read it once now, to report a wrong file before dialing.
        token.read().map_err(|error| anyhow!(error))?;

        let ca = config.client.ca.clone().unwrap_or(files.ca);
        if !ca.exists() {
            return Err(Failure::new(
                anyhow!("no certificate authority {}", ca.display()),
                "start `bimip serve --dev` first, or give --data-dir or --ca",
            ));
        }
        let (server, dial) = server(&config)?;
        let transports = match config.client.transport {
            ClientTransport::Auto => Transports::Auto,
            ClientTransport::Quic => Transports::Only(Transport::Quic),
            ClientTransport::Tcp => Transports::Only(Transport::Tcp),
        };
        let traces = match &config.client.qlog_dir {
            Some(folder) => {
                let traces = Traces::in_folder(folder, |_| ());
                Some(traces.map_err(|error| anyhow!("cannot write traces to {}: {error}", folder.display()))?)
            }
            None => None,
        };
        Ok(Account { eid, device, server, dial, ca, token, transports, traces })
    }
}

/// The server's name, and what to dial. On most machines `localhost` resolves to an IPv4 and an IPv6 address, but the
/// server may listen on one of them only. So the family comes from `listen`, and no time is lost on the other address.
fn server(config: &Config) -> Result<(String, (String, Option<&'static str>)), Failure> {
    if let Some(server) = &config.client.server {
        return Ok((server.clone(), (server.clone(), None)));
    }
    let listen = config.listen;
    if listen.port() == 0 {
        return Err(Usage("no server: `listen` has port 0, give --server host:port").into());
    }
    if !listen.ip().is_unspecified() {
        return Ok((listen.to_string(), (listen.to_string(), None)));
    }
    let loopback = if listen.is_ipv6() { "[::1]" } else { "127.0.0.1" };
    let port = listen.port();
    Ok((format!("localhost:{port}"), (format!("{loopback}:{port}"), Some("localhost"))))
}

impl Account {
    /// A builder for this account's device, for the caller to complete and connect.
    pub(super) fn builder(&self) -> Builder {
        let token = self.token.clone();
        let builder = Device::builder()
            .server(&self.dial.0)
            .roots_pem(&self.ca)
            .identity(self.eid.clone(), self.device.clone())
            .transports(self.transports)
            .token(move || std::future::ready(token.read()));
        let builder = match self.dial.1 {
            Some(name) => builder.server_name(name),
            None => builder,
        };
        match self.traces.clone() {
            Some(traces) => {
                let (user, device) = (self.eid.clone(), self.device.clone());
                builder.qlog(move || {
                    let name = format!("{}-{user}-{device}", Now::system().unix_ms);
                    traces.begin(&name).map(|trace| Box::new(trace) as _)
                })
            }
            None => builder,
        }
    }

    /// Waits for a session until `until`. Returns early on failures that waiting cannot fix.
    pub(super) async fn reach(&self, device: &Device, until: Instant) -> Result<Session, Failure> {
        let mut state = device.state();
        let mut last = None;
        loop {
            match state.borrow_and_update().clone() {
                State::Connected(session) => return Ok(session),
                State::Closed(reason) => return Err(self.failure(&reason)),
                State::Waiting { reason: reason @ (CloseReason::Tls(_) | CloseReason::NoToken(_)), .. } => {
                    return Err(self.failure(&reason));
                }
                State::Waiting { reason, .. } => last = Some(reason),
                State::Connecting => {}
            }
            if !matches!(timeout_at(until, state.changed()).await, Ok(Ok(()))) {
                let silence = CloseReason::Network("no answer in time".to_owned());
                return Err(self.failure(&last.unwrap_or(silence)));
            }
        }
    }

    /// Why there is no session, in one line, with a hint where there is one.
    pub(super) fn failure(&self, reason: &CloseReason) -> Failure {
        let Account { server, device, .. } = self;
        let what = anyhow!("cannot reach {server}: {reason}");
        match reason {
            CloseReason::Network(why) if is_full(why) => Failure::new(what, FULL),
            CloseReason::Network(_) if let Transports::Only(only) = self.transports => Failure::new(
                what,
                format!(
                    "over {} alone: is it running, and does the network let that through? Without --transport both are tried",
                    only.name()
                ),
            ),
            CloseReason::Network(_) | CloseReason::Server { code: CloseCode::Draining | CloseCode::Internal, .. } => {
                Failure::new(what, "is it running? Start one with `bimip serve --dev`, or give --server host:port")
            }
            CloseReason::PutOff(_) => {
                Failure::new(anyhow!("{server} was reached: {reason}"), "its /readyz, `bimip status` and log say why")
            }
            CloseReason::Denied(refusal) => Failure::new(
                anyhow!("{server} does not let {} sign in as device {device}: {refusal}", self.eid),
                "give the --device of one that is no longer used, or revoke one",
            ),
            CloseReason::Tls(why) => Failure::new(what, about_certificate(why, &self.ca)),
            CloseReason::Server { code: code @ (CloseCode::Unauthenticated | CloseCode::Revoked), reason } => {
                Failure::new(
                    anyhow!("{server} does not let {} sign in: {reason}", self.eid),
                    about_token(matches!(self.token, Token::Signed(..)), *code, reason),
                )
            }
            CloseReason::Server { code: CloseCode::Replaced, .. } => Failure::new(
                anyhow!("{} signed in elsewhere as device {device}", self.eid),
                "give each its own --device",
            ),
            _ => Failure { reason: what, hint: None },
        }
    }
}

/// What to do about a token that the server does not take; whether this command signed it, or it came from a file.
fn about_token(is_signed: bool, code: CloseCode, reason: &str) -> &'static str {
    match is_signed {
        false => "the token in --token-file is not good (any more)",
        // It is as old as this command, and a revocation names the second until which tokens are revoked.
        true if code == CloseCode::Revoked || reason.contains("revoked") => {
            "a revocation includes the tokens of its own second: try again"
        }
        true => "--data-dir must be the one of this server",
    }
}

/// What to do about a certificate that this client does not take, by TLS's reason.
fn about_certificate(why: &str, ca: &Path) -> String {
    let ca = ca.display();
    // rustls has two forms of each: with what was compared, and without.
    let says = |words: [&str; 2]| words.iter().any(|words| why.contains(words));
    match () {
        () if says(["expired", "Expired"]) => {
            "the server's certificate is over: renew it and `bimip reload`, or set this machine's clock".to_owned()
        }
        () if says(["not valid yet", "NotValidYet"]) => {
            "set the clock of this machine, or of the one that made the certificate".to_owned()
        }
        () if says(["not valid for name", "NotValidForName"]) => {
            "the host in --server must be a name in the server's certificate".to_owned()
        }
        () if says(["UnknownIssuer", "BadSignature"]) => {
            format!("{ca} must be the authority that this server's certificate comes from (--ca)")
        }
        () => {
            format!("its certificate must be for the host in --server, valid now, and from the authority {ca} (--ca)")
        }
    }
}

impl Token {
    fn read(&self) -> Result<String, TokenError> {
        match self {
            Token::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
                let token = text.trim();
                if token.is_empty() {
                    return Err(format!("no token in {}: the file is empty", path.display()).into());
                }
                Ok(token.to_owned())
            }
            Token::Signed(signer, grant) => Ok(signer.sign(grant, Now::system().unix_ms / 1000)?),
        }
    }
}

/// Parses a number of seconds from the command line, at most `max`.
pub(super) fn seconds(text: &str, max: Duration) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match seconds.filter(|time| !time.is_zero() && *time <= max) {
        Some(time) => Ok(time),
        None => Err(format!("must be seconds, as in 15 or 0.5, at most {}", max.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_server_it_is_the_one_that_listens_here() {
        let server_of = |listen: &str| {
            let config = Config { listen: listen.parse().unwrap(), ..Config::default() };
            super::server(&config).map(|(name, (dial, _))| format!("{name} {dial}")).map_err(|failure| failure.reason)
        };
        assert_eq!(server_of("0.0.0.0:4433").unwrap(), "localhost:4433 127.0.0.1:4433");
        assert_eq!(server_of("[::]:5").unwrap(), "localhost:5 [::1]:5");
        assert_eq!(server_of("10.0.0.7:5").unwrap(), "10.0.0.7:5 10.0.0.7:5");
        assert!(server_of("0.0.0.0:0").is_err());
    }

    #[test]
    fn a_hint_is_about_what_is_wrong_with_the_certificate() {
        use rustls::CertificateError::{self, Expired, NotValidForName, NotValidYet, Revoked, UnknownIssuer};
        use rustls_pki_types::{ServerName, UnixTime};

        let hint = |error: CertificateError| {
            about_certificate(&rustls::Error::InvalidCertificate(error).to_string(), Path::new("ca.pem"))
        };
        let (now, later) = (UnixTime::since_unix_epoch(Duration::from_secs(1)), Duration::from_secs(2));
        let later = UnixTime::since_unix_epoch(later);
        let name = ServerName::try_from("localhost").unwrap();
        let other = CertificateError::NotValidForNameContext { expected: name, presented: vec!["x".to_owned()] };
        let over = CertificateError::ExpiredContext { time: later, not_after: now };
        let early = CertificateError::NotValidYetContext { time: now, not_before: later };
        for (errors, word) in [
            ([Expired, over], "renew"),
            ([NotValidYet, early], "clock"),
            ([NotValidForName, other], "host in --server must be a name"),
            ([UnknownIssuer, CertificateError::BadSignature], "ca.pem must be the authority"),
            ([Revoked, CertificateError::BadEncoding], "valid now"),
        ] {
            for error in errors {
                let (error, hint) = (format!("{error:?}"), hint(error));
                assert!(hint.contains(word), "{error}: {hint}");
            }
        }
    }

    #[test]
    fn a_token_that_was_signed_within_the_second_of_a_revocation_is_signed_anew_by_trying_again() {
        let unauthenticated = CloseCode::Unauthenticated;
        assert!(about_token(true, unauthenticated, "the token was revoked").contains("try again"));
        assert!(about_token(true, unauthenticated, "no key has signed it").contains("--data-dir"));
        assert!(about_token(false, unauthenticated, "the token was revoked").contains("--token-file"));
    }

    #[test]
    fn seconds_are_bounded() {
        let max = Duration::from_secs(10);
        assert_eq!(seconds("0.5", max), Ok(Duration::from_millis(500)));
        for wrong in ["", "x", "0", "-1", "11", "NaN", "inf"] {
            assert!(seconds(wrong, max).is_err(), "{wrong}");
        }
    }
}
