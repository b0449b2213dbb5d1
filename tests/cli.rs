//! The program as a person or a script sees it: what it prints to which stream, and its exit codes.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use bimip::auth::Verifier;
use bimip::auth::dev::{self, DevFiles};
use bimip::config::{AuthConfig, Config};

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// A folder to run the program in, and the environment variables that it gets.
struct Place {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Place {
        self.variables.push((name, value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn dev_files(&self, data_dir: &str) -> DevFiles {
        dev::ensure(&self.path(data_dir), &[]).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bimip"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap()
    }

    /// Standard output of a command that succeeds without writing to standard error.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{arguments:?}: {err}");
        assert_eq!(err, "");
        out
    }

    /// Standard error of a command that fails with this exit code: one line, perhaps with a hint. Standard output is empty.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        assert_eq!(out, "");
        let lines: Vec<_> = err.lines().collect();
        assert!(lines[0].starts_with("bimip: "), "{err}");
        assert!(lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "), "{err}");
        err
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn claims(public: &Path, printed: &str) -> bimip::auth::Claims {
    let token = printed.strip_suffix('\n').unwrap();
    assert!(!token.contains(char::is_whitespace), "{token:?}");
    Verifier::from_config(&AuthConfig::default(), Some(public)).unwrap().verify(token, now()).unwrap()
}

#[test]
fn token_prints_the_token_alone() {
    let place = Place::new();
    let files = place.dev_files("d");
    let before = now();
    let printed = place.prints(&["token", "--data-dir", "d", "--eid", "Alice@localhost", "--device", "phone"]);
    let claims = claims(&files.token_public, &printed);
    assert_eq!(claims.eid.as_str(), "alice@localhost");
    assert_eq!(claims.device.unwrap().as_str(), "phone");
    assert!((before + 24 * 3600..=now() + 24 * 3600).contains(&claims.expires_at));
    assert!(!claims.admin);
}

#[test]
fn token_takes_a_lifetime_and_a_scope() {
    let place = Place::new();
    let files = place.dev_files("bimip-data");
    let printed = place.prints(&["token", "--eid", "root@localhost", "--ttl", "2m", "--scope", "admin"]);
    let claims = claims(&files.token_public, &printed);
    assert_eq!(claims.expires_at - claims.issued_at.unwrap(), 120);
    assert!(claims.admin);
    assert_eq!(claims.device, None);
}

#[test]
fn options_come_from_flags_over_the_environment_over_the_file() {
    let place = Place::new().with("BIMIP_CONFIG", "bimip.toml").with("BIMIP_CLIENT__DEVICE", "tablet");
    place.write(
        "bimip.toml",
        "data_dir = 'd'\n[client]\nas = 'carol@localhost'\ndevice = 'laptop'\n[token]\nttl = '1h'\n",
    );
    let files = place.dev_files("d");
    let of = |arguments: &[&str]| claims(&files.token_public, &place.prints(arguments));
    let plain = of(&["token"]);
    assert_eq!(plain.eid.as_str(), "carol@localhost");
    assert_eq!(plain.device.unwrap().as_str(), "tablet");
    assert_eq!(plain.expires_at - plain.issued_at.unwrap(), 3600);
    assert_eq!(of(&["token", "--device", "phone"]).device.unwrap().as_str(), "phone");
}

#[test]
fn token_without_a_key_says_how_to_get_one() {
    let place = Place::new();
    let err = place.fails(FAILURE, &["token", "--data-dir", "d", "--eid", "alice@localhost"]);
    assert_eq!(err, "bimip: no token key d/keys/token.key\nhint: bimip serve --dev --data-dir d makes one\n");
    assert!(!place.path("d").exists());
}

#[test]
fn certs_makes_what_is_missing_and_keeps_what_is_there() {
    let place = Place::new();
    let printed = place.prints(&["certs"]);
    assert_eq!(printed.lines().count(), 3);
    let certificate = std::fs::read(place.path("certs/server.pem")).unwrap();
    assert_eq!(place.prints(&["certs"]), printed);
    assert_eq!(std::fs::read(place.path("certs/server.pem")).unwrap(), certificate);

    place.prints(&["certs", "other", "--name", "chat.example.org", "--name", "10.0.0.7"]);
    bimip::auth::load_tls(&place.path("other/server.pem"), &place.path("other/server.key")).unwrap();
    let err = place.fails(FAILURE, &["certs", "--name", "chat.example.org"]);
    assert!(err.contains("is not for chat.example.org: remove server.pem"), "{err}");
    place.fails(FAILURE, &["certs", "third", "--name", "no name"]);
    assert!(!place.path("third").exists());
}

#[test]
fn config_prints_what_is_in_effect() {
    let place = Place::new().with("BIMIP_QUIC__IDLE_TIMEOUT_MS", "60000");
    place.write("bimip.toml", "server_name = 'chat'\n[quic]\nidle_timeout_ms = 50000\nkeep_alive_ms = 20000\n");
    let printed = place.prints(&["config", "--config", "bimip.toml", "--domains", "a.example,b.example", "--dev"]);
    place.write("printed.toml", &printed);
    let config = Config::load_from(Some(&place.path("printed.toml")), [], ()).unwrap();
    assert_eq!(config.server_name, "chat");
    assert_eq!(config.quic.idle_timeout_ms, 60_000);
    assert_eq!(config.quic.keep_alive_ms, 20_000);
    assert_eq!(config.domains, ["a.example", "b.example"]);
    assert!(config.dev);
}

#[test]
fn a_wrong_configuration_is_a_usage_error_that_names_the_key() {
    let place = Place::new().with("BIMIP_QUIC__IDEL", "1");
    assert!(place.fails(USAGE, &["config"]).starts_with("bimip: BIMIP_QUIC__IDEL in the environment: no such key"));
    let place = Place::new();
    place.write("bimip.toml", "[session]\nping_interval_ms = 5\n");
    let err = place.fails(USAGE, &["serve", "--config", "bimip.toml"]);
    assert_eq!(err, "bimip: session.ping_interval_ms is 5, must be 1000 to 3600000\n");
    let err = place.fails(USAGE, &["config", "--config", "nowhere.toml"]);
    assert!(err.starts_with("bimip: cannot read the configuration file nowhere.toml: "), "{err}");
}

#[test]
fn wrong_usage_is_one_line_and_a_hint() {
    let place = Place::new();
    for (arguments, complaint) in [
        (&["serv"][..], "bimip: unrecognized subcommand 'serv'\nhint: a similar subcommand exists: 'serve'\n"),
        (
            &["serve", "--lisen", "x"],
            "bimip: unexpected argument '--lisen' found\nhint: a similar argument exists: '--listen'\n",
        ),
        (
            &["serve", "--listen", "x"],
            "bimip: invalid value 'x' for '--listen <ADDR:PORT>': invalid socket address syntax\nhint: see bimip serve --help\n",
        ),
        (&["token"], "bimip: no user: give --eid local@domain\n"),
        (&["--nothing"], "bimip: unexpected argument '--nothing' found\nhint: see bimip --help\n"),
    ] {
        assert_eq!(place.fails(USAGE, arguments), complaint);
    }
    assert!(place.fails(USAGE, &["token", "--eid", "alice"]).contains("an eid is local@domain"));
    assert!(place.fails(USAGE, &["token", "--eid", "a@b", "--device", "my phone"]).contains("connection_resource_id"));
    assert!(place.fails(USAGE, &["token", "--eid", "a@b", "--ttl", "soon"]).contains("token.ttl is \"soon\""));

    let output = place.run(&[]);
    assert_eq!(output.status.code(), Some(USAGE));
    assert!(texts(&output).1.contains("Usage: bimip <COMMAND>"));
}

#[test]
fn help_and_version_are_successes() {
    let place = Place::new();
    assert_eq!(place.prints(&["--version"]), format!("bimip {}\n", env!("CARGO_PKG_VERSION")));
    for command in ["serve", "send", "listen", "chat", "token", "certs", "config"] {
        assert!(place.prints(&["--help"]).contains(command));
        assert!(place.prints(&[command, "--help"]).contains("--config"));
    }
}

#[test]
fn serve_without_certificate_or_keys_says_what_to_do() {
    let place = Place::new();
    assert_eq!(
        place.fails(FAILURE, &["serve"]),
        "bimip: no certificate: set tls.certificate and tls.key, or start with --dev\n"
    );
    assert!(!place.path("bimip-data").exists());
    place.prints(&["certs"]);
    let place = place.with("BIMIP_TLS__CERTIFICATE", "certs/server.pem").with("BIMIP_TLS__KEY", "certs/server.key");
    assert_eq!(
        place.fails(FAILURE, &["serve"]),
        "bimip: no token keys: set auth.keys, auth.jwks or auth.hs256_secret_file, or start with --dev\n"
    );
}
