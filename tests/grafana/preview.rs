//! Draws `grafana/preview` from a run over the emulated network: phones chat while their network gets worse, changes, goes
//! dark and blocks UDP. A maintainer runs it and checks the pictures; it takes six minutes and needs root.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bimip::client::{Admission, Content, Transport, Transports};
use bimip::config::Rate;
use bimip::link::{Network, Path, Plan, Profile};
use bimip::wire::AwarenessStatus;
use serde_json::Value;
use tokio::time::sleep;

use crate::browser::{self, screenshot_with};
use crate::common::{TestServer, now_ms, scratch};
use crate::plot::{self, Mark, Span};
use crate::prometheus::{Prometheus, grafana};
use crate::queries::{panels, without_variables, written};
use crate::traffic::{Place, eid};

const PAIRS: usize = 12;
const IDLE: usize = 4;
/// Seconds between points.
const STEP: f64 = 2.0;

fn unix_s() -> f64 {
    now_ms() as f64 / 1000.0
}

fn user(number: usize) -> String {
    format!("user{number}@localhost")
}

/// Two users who send to each other until `over` is set.
async fn talk(place: Place, pair: usize, over: Arc<AtomicBool>) {
    let (one, two) = (user(2 * pair), user(2 * pair + 1));
    let connect = |user: &str, number: usize| {
        let phone =
            place.device(user, "phone").silence(Duration::from_secs(3)).retry_quic_after(Duration::from_secs(20));
        let over_tcp = number == 0;
        let phone = if over_tcp { phone.transports(Transports::Only(Transport::Tcp)) } else { phone };
        let (device, mut events) = phone.connect().unwrap();
        tokio::spawn(async move { while events.next().await.is_some() {} });
        device
    };
    let devices = [connect(&one, 2 * pair), connect(&two, 2 * pair + 1)];
    devices[0].connected().await.unwrap();
    let _ = devices[0].add_subscriber(&eid(&two), Admission::default()).await;
    let mut said = 0_usize;
    while !over.load(Ordering::Relaxed) {
        // Each pair sends at its own speed.
        sleep(Duration::from_millis(350 + 90 * pair as u64)).await;
        let (from, to) = if said.is_multiple_of(2) { (&devices[0], &two) } else { (&devices[1], &one) };
        let draft = from.draft(&eid(to), Content::Text(format!("message {said}, as long as people write")));
        let _ = from.submit(draft);
        said += 1;
        if said % 12 == pair % 12 {
            let status = if said % 24 < 12 { AwarenessStatus::Away } else { AwarenessStatus::Online };
            let _ = devices[0].set_presence(status, true, None).await;
        }
    }
}

/// Traffic for the other panels: wrong tokens, a second device that returns to missed messages, a blocked user, a user who
/// asks too often, and phones that only listen.
async fn others(place: Place, over: Arc<AtomicBool>) {
    let sign_in = |user: &str, device: &str| {
        let (device, mut events) = place.device(user, device).silence(Duration::from_secs(3)).connect().unwrap();
        tokio::spawn(async move { while events.next().await.is_some() {} });
        device
    };
    let idle: Vec<_> = (0..IDLE).map(|number| sign_in(&format!("idle{number}@localhost"), "phone")).collect();
    let (bore, curious) = (sign_in("bore@localhost", "phone"), sign_in("curious@localhost", "phone"));
    idle[0].connected().await.unwrap();
    idle[0].block(bore.eid()).await.unwrap();
    let (mut round, mut desk_saw) = (0_u64, None);
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_secs(4)).await;
        round += 1;
        let (stranger, _events) = place.device(&user(0), "stolen").token("no.such.token".to_owned()).connect().unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(2), stranger.connected()).await;
        if round.is_multiple_of(3) {
            let _ = bore.submit(bore.draft(idle[0].eid(), Content::Text("Hello?".to_owned())));
        }
        if round.is_multiple_of(5) {
            let one = eid(&user(0));
            let asked = async { futures_util::future::join_all((0..40).map(|_| curious.presence_of(&one))).await };
            let _ = tokio::time::timeout(Duration::from_secs(2), asked).await;
        }
        if round.is_multiple_of(4) {
            let (desk, mut events) = place.device(&user(3), "desk").resume_from(desk_saw).connect().unwrap();
            let reading = async {
                desk_saw = desk.connected().await.ok().map(|session| session.log_head);
                while events.next().await.is_some() {}
            };
            let _ = tokio::time::timeout(Duration::from_secs(2), reading).await;
            desk.close().await;
        }
    }
}

/// Changes the network over time. Returns what was changed when.
async fn weather(net: &Network) -> Vec<Mark> {
    let control = net.control();
    let mut marks = Vec::new();
    let mut mark = |what| marks.push(Mark { at: unix_s(), what });
    let wait = |seconds| sleep(Duration::from_secs(seconds));
    wait(45).await;
    control.set_profile(Path::Wifi, Profile::BURSTY_3).unwrap();
    mark("Wi-Fi loses 3 % in bursts");
    wait(50).await;
    control.hand_over(Path::Lte, Duration::from_millis(300)).unwrap().switched().await.unwrap();
    mark("to LTE");
    wait(45).await;
    control.black_out(Path::Lte, true).unwrap();
    mark("dark for 8 s");
    wait(8).await;
    control.black_out(Path::Lte, false).unwrap();
    wait(25).await;
    control.set_profile(Path::Lte, Profile::THIRD_GENERATION).unwrap();
    mark("3G");
    wait(45).await;
    control.rebind_nat(Path::Lte).unwrap();
    mark("NAT forgets");
    wait(20).await;
    control.block_udp(true).unwrap();
    mark("UDP blocked for 35 s");
    wait(35).await;
    control.block_udp(false).unwrap();
    wait(30).await;
    control.set_profile(Path::Wifi, Profile::WIFI).unwrap();
    control.hand_over(Path::Wifi, Duration::from_millis(300)).unwrap().switched().await.unwrap();
    mark("back to Wi-Fi");
    wait(40).await;
    marks
}

async fn answers(
    prometheus: &Prometheus,
    dashboard: &Value,
    span: Span,
) -> BTreeMap<u64, Vec<Vec<crate::prometheus::Series>>> {
    let mut answers = BTreeMap::new();
    for panel in panels(dashboard) {
        let mut of_panel = Vec::new();
        for target in panel["targets"].as_array().unwrap() {
            let expr = without_variables(target["expr"].as_str().unwrap(), "10s");
            of_panel.push(prometheus.range(&expr, span.from, span.to, span.step).await.unwrap());
        }
        answers.insert(panel["id"].as_u64().unwrap(), of_panel);
    }
    answers
}

#[test]
#[ignore = "writes grafana/preview in six minutes; needs root"]
fn draw_the_previews() {
    let net = Network::start(Plan { wifi: Profile::WIFI, lte: Profile::LTE, seed: 7 }).unwrap();
    let (phone, serving) = (net.phone().runtime(1).unwrap(), net.server().runtime(2).unwrap());
    let listen = (net.server_address(), 4433).into();
    let server = serving.block_on(TestServer::with(|config| {
        config.listen = listen;
        // So that a short run shows what otherwise takes hours: pings to sleeping phones, retention, many phones returning.
        config.session.ping_interval_ms = 3000;
        config.retention.interval_minutes = 1;
        config.retention.entries_per_user = 100;
        config.quic.handshakes_before_retry = 4;
        config.limits.awareness = Rate { per_second: 5, burst: 25 };
    }));
    let prometheus = Prometheus::start(net.server().command("prometheus"), server.metrics_address());
    let place = Place { address: listen.to_string(), files: server.files() };
    let over = Arc::new(AtomicBool::new(false));
    let from = unix_s();
    for pair in 0..PAIRS {
        phone.spawn(talk(place.clone(), pair, over.clone()));
    }
    phone.spawn(others(place, over.clone()));
    let marks = serving.block_on(weather(&net));
    let span = Span { from, to: unix_s(), step: STEP };

    let folder = grafana().join("preview");
    std::fs::create_dir_all(&folder).unwrap();
    let said: Vec<_> = marks.iter().map(|mark| format!("{} {}", plot::clock(mark.at - from), mark.what)).collect();
    let caption = format!(
        "{} phones over bimip's emulated mobile network (seed 7). Drawn from the panel queries by plotters, not by Grafana: \
         each panel is the answer of a real Prometheus that scraped this run once a second.<br>Grey lines: {}.",
        2 * PAIRS + IDLE + 2,
        said.join("; "),
    );
    let scrap = scratch();
    let pictured = |program: Command, url: &str, size: (u64, u64), name: &str| {
        screenshot_with(program, url, (size.0 as u32, size.1 as u32), &folder.join(name));
    };
    for (name, dashboard) in written() {
        let answers = serving.block_on(answers(&prometheus, &dashboard, span));
        let html: PathBuf = scrap.path().join("page.html");
        std::fs::write(&html, plot::page(&dashboard, &answers, span, &marks, &caption)).unwrap();
        let picture = FilePath::new(name).with_extension("png");
        let size = (plot::WIDTH, plot::height(&dashboard));
        pictured(
            Command::new(browser::PROGRAM),
            &format!("file://{}", html.display()),
            size,
            picture.to_str().unwrap(),
        );
    }
    let status = format!("http://{}/", server.metrics_address());
    pictured(net.server().command(browser::PROGRAM), &status, (1060, 780), "status-page.png");
    over.store(true, Ordering::Relaxed);
    phone.shut_down();
    serving.block_on(server.shutdown());
}
