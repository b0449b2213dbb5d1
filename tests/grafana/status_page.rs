//! The status page as a person sees it, in a real browser.

use std::path::Path;

use crate::browser::{document, screenshot};
use crate::common::{TestServer, within_bound};
use crate::traffic::{Crowd, Place};

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_shows_a_server_under_load_on_a_desk_and_on_a_phone() {
    let server = TestServer::start().await;
    let place = Place { address: server.quic_address().to_string(), files: server.files() };
    let mut crowd = Crowd::sign_in(place).await;
    // Wait until the line of the delivery latency has at least two points.
    let drawn = |page: &str| {
        let latency =
            page.split("aria-label=\"Live delivery latency\"").nth(1).unwrap().split("</svg>").next().unwrap();
        let points = latency.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        points.map_or(0, |points| points.split(' ').collect::<std::collections::BTreeSet<_>>().len())
    };
    within_bound("the page to have a line", async {
        while drawn(&server.get("/").await) < 2 {
            crowd.live().await;
        }
    })
    .await;

    let url = format!("http://{}/", server.metrics_address());
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let seen = tokio::task::spawn_blocking(move || {
        screenshot(&url, (1060, 900), &pictures.join("status-page.png"));
        screenshot(&url, (400, 1400), &pictures.join("status-page-phone.png"));
        document(&url)
    });
    let seen = seen.await.unwrap();
    assert!(seen.contains("id=\"state\">ready</span>"), "{seen}");
    for title in ["QUIC sessions", "delivery, median", "disk free"] {
        assert!(seen.contains(title), "{title}");
    }
    assert!(!seen.contains("{{") && !seen.contains("NaN") && !seen.contains("unknown"), "{seen}");
    for outside in ["src=", "<script", "<link", "@import", "url("] {
        assert!(!seen.contains(outside), "the page is all there is: {outside}");
    }
    server.shutdown().await;
}
