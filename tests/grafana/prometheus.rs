//! A real Prometheus for a test: Debian's program, the repository's configuration and rules, and a server to scrape.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{scratch, within_bound};

/// The message for a program that is not installed.
pub fn missing(program: &str, reason: &std::io::Error) -> String {
    format!("{program} does not run here ({reason}): install Debian's package, `apt-get install prometheus chromium`")
}

/// `grafana/` in the repository.
pub fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana")
}

/// Runs `promtool` in `grafana/`, with a text on its standard input.
pub fn promtool(arguments: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(grafana())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|reason| panic!("{}", missing("promtool", &reason)));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// One series of an answer: its labels, and its values over time.
#[derive(Clone, Debug)]
pub struct Series {
    /// Labels without the metric's name.
    pub labels: BTreeMap<String, String>,
    /// Time (Unix seconds) and value, in order of time. Values may be NaN or infinite.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    fn of(json: &Value) -> Series {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let labels = json["metric"].as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value)));
        let points = json["values"].as_array().cloned().unwrap_or_else(|| vec![json["value"].clone()]);
        let point = |point: &Value| (point[0].as_f64().unwrap(), point[1].as_str().unwrap().parse().unwrap());
        Series { labels: labels.collect(), points: points.iter().map(point).collect() }
    }

    /// Whether any value is finite.
    pub fn says_something(&self) -> bool {
        self.points.iter().any(|(_, value)| value.is_finite())
    }
}

/// A running Prometheus; dropping it stops it.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it with `grafana/prometheus.yml` and the rules, but scraping once a second. `program` runs `prometheus`.
    pub fn start(mut program: Command, target: SocketAddr) -> Prometheus {
        let directory = scratch();
        let folder = directory.path();
        std::fs::create_dir(folder.join("rules")).unwrap();
        for file in ["prometheus.yml", "rules/recording.yml", "rules/alerts.yml"] {
            let text = std::fs::read_to_string(grafana().join(file)).unwrap();
            let text = text
                .replace("bimip:9464", &target.to_string())
                .replace("interval: 15s", "interval: 1s")
                .replace("interval: 30s", "interval: 1s");
            std::fs::write(folder.join(file), text).unwrap();
        }
        let mut child = program
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .args(["--web.listen-address=127.0.0.1:0", "--log.format=logfmt"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|reason| panic!("{}", missing("prometheus", &reason)));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (mut address, mut is_ready) = (None, false);
        let mut said = String::new();
        for line in lines.by_ref() {
            said.push_str(&line);
            said.push('\n');
            if line.contains("Listening on") {
                address =
                    line.split_once("address=").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
            }
            // In either order.
            is_ready |= line.contains("Server is ready to receive web requests");
            if is_ready && address.is_some() {
                break;
            }
        }
        // It goes on logging. Read the pipe, or a full pipe would block it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.unwrap_or_else(|| panic!("Prometheus did not start:\n{said}"));
        Prometheus { child, address, _directory: directory }
    }

    /// The API's answer under a path.
    ///
    /// # Errors
    /// The reason that Prometheus gives for refusing the request.
    pub async fn get(&self, path: &str) -> Result<Value, String> {
        let exchange = async {
            let mut http = TcpStream::connect(self.address).await?;
            // With HTTP/1.0 the answer is not chunked.
            http.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
            let mut response = String::new();
            http.read_to_string(&mut response).await?;
            std::io::Result::Ok(response)
        };
        let response = within_bound("Prometheus to answer", exchange).await.map_err(|error| error.to_string())?;
        let (_, body) = response.split_once("\r\n\r\n").ok_or("no HTTP")?;
        let json: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
        if json["status"] == "success" { Ok(json["data"].clone()) } else { Err(json["error"].to_string()) }
    }

    /// The present answer to a query.
    ///
    /// # Errors
    /// The reason that Prometheus gives for refusing the query.
    pub async fn now(&self, query: &str) -> Result<Vec<Series>, String> {
        series(&self.get(&format!("/api/v1/query?query={}", encoded(query))).await?)
    }

    /// The answer to a query from one time to another (Unix seconds), in steps of `step` seconds.
    ///
    /// # Errors
    /// The reason that Prometheus gives for refusing the query.
    pub async fn range(&self, query: &str, from: f64, to: f64, step: f64) -> Result<Vec<Series>, String> {
        let query = encoded(query);
        let path = format!("/api/v1/query_range?query={query}&start={from}&end={to}&step={step}");
        series(&self.get(&path).await?)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn series(data: &Value) -> Result<Vec<Series>, String> {
    match data["resultType"].as_str() {
        Some("vector" | "matrix") => Ok(data["result"].as_array().unwrap().iter().map(Series::of).collect()),
        other => Err(format!("an answer of type {other:?} is no line of a panel")),
    }
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
