//! Checks whether configured values can work, alone and together.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::{Config, ConfigError, LbConfig, Rate};
use crate::limits;
use crate::wire::{DEVICE_FRAME_BYTES_MAX, DeviceId, Eid, TEXT_BYTES_MAX, URL_BYTES_MAX};

/// Below this, a connection would end between two retransmissions on a slow mobile path.
const IDLE_TIMEOUT_MS: RangeInclusive<u64> = 5_000..=3_600_000;
/// Below this, pings would be most of the traffic.
const PING_INTERVAL_MS: RangeInclusive<u64> = 1_000..=3_600_000;
/// From a text of full length with its envelope, up to what a device of the library accepts.
const FRAME_BYTES: RangeInclusive<usize> = TEXT_BYTES_MAX + 4096..=DEVICE_FRAME_BYTES_MAX;
/// From two packets, up to the largest window that is still a bound.
const WINDOW_BYTES: RangeInclusive<u32> = 4096..=64 * 1024 * 1024;
/// The upper bound is each lane's part of the connection's window.
const LANE_WINDOW_BYTES: RangeInclusive<u32> = 4096..=64 * 1024 * 1024 / limits::LANES;
const OPEN_WITHIN_MS: RangeInclusive<u64> = 100..=600_000;
const RELEASE_WITHIN_MS: RangeInclusive<u64> = 0..=60_000;
/// From none, up to what still distinguishes a lost connection from a user who is there.
const OFFLINE_GRACE_MS: RangeInclusive<u64> = 0..=600_000;
/// Above this, presence is no longer news.
const PRESENCE_INTERVAL_MS: RangeInclusive<u64> = 0..=60_000;
/// At most ten minutes (protocol.md §12).
const LOCATION_KEPT_MS: RangeInclusive<u64> = 0..=limits::LOCATION_KEPT.as_millis() as u64;
const INITIAL_RTT_MS: RangeInclusive<u64> = 1..=10_000;
/// Three bits, whose last value means that there is no server id.
const LB_CONFIG_ID: RangeInclusive<u8> = 0..=6;
/// Up to what a server id of one byte leaves of a connection id.
const LB_NONCE_BYTES: RangeInclusive<usize> = limits::LB_NONCE_BYTES..=LB_BYTES_MAX - 1;
/// Bytes of server id and nonce together: a connection id of QUIC version 1 without its first octet.
const LB_BYTES_MAX: usize = 19;
/// From the store's own working set, up to a machine's memory.
const CACHE_BYTES: RangeInclusive<u64> = 1024 * 1024..=1 << 40;

/// From a day to ten years.
const RETENTION_DAYS: RangeInclusive<u32> = 1..=3650;
/// With fewer, a device that was away for a moment would lose messages.
const RETENTION_ENTRIES: RangeInclusive<u64> = 100..=1_000_000_000;
/// Up to a day.
const RETENTION_MINUTES: RangeInclusive<u64> = 1..=1440;

pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let Config {
        domains,
        server_name,
        tls,
        auth: _,
        quic,
        session,
        presence,
        limits: rates,
        store,
        retention,
        media,
        log,
        client,
        token,
        ..
    } = config;

    if let Some(domain) = domains.iter().find(|domain| Eid::parse(&format!("a@{domain}")).is_err()) {
        return wrong("domains", format!("has {domain:?}, which is not a domain: write example.org, without an @"));
    }
    if server_name.is_empty() || server_name.len() > 255 {
        return wrong("server_name", "must be 1 to 255 bytes".to_owned());
    }
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => return wrong("tls.key", "is missing: set it next to tls.certificate".to_owned()),
        (None, Some(_)) => return wrong("tls.certificate", "is missing: set it next to tls.key".to_owned()),
        _ => {}
    }

    within("quic.idle_timeout_ms", quic.idle_timeout_ms, IDLE_TIMEOUT_MS)?;
    if quic.keep_alive_ms >= quic.idle_timeout_ms {
        return wrong("quic.keep_alive_ms", "must be below quic.idle_timeout_ms, or 0 for none".to_owned());
    }
    within("quic.stream_receive_window", quic.stream_receive_window, LANE_WINDOW_BYTES)?;
    within("quic.connection_receive_window", quic.connection_receive_window, WINDOW_BYTES)?;
    // Otherwise lanes that are not read would leave no window for the others.
    let least = limits::LANES * quic.stream_receive_window;
    if quic.connection_receive_window < least {
        let reason = format!("must be at least {least}: quic.stream_receive_window for each lane");
        return wrong("quic.connection_receive_window", reason);
    }
    within("quic.send_window", quic.send_window, WINDOW_BYTES)?;
    within("quic.max_connections", quic.max_connections, 1..=usize::MAX)?;
    within("quic.handshakes_max", quic.handshakes_max, 1..=usize::MAX)?;
    if quic.handshakes_before_retry > quic.handshakes_max {
        return wrong("quic.handshakes_before_retry", "must be at most quic.handshakes_max".to_owned());
    }
    within("quic.handshakes_unproven_per_second", quic.handshakes_unproven_per_second, 1..=u32::MAX)?;
    within("quic.initial_rtt_ms", quic.initial_rtt_ms, INITIAL_RTT_MS)?;
    balanced(&quic.lb)?;

    within("session.ping_interval_ms", session.ping_interval_ms, PING_INTERVAL_MS)?;
    // A device over TCP that has nothing to say is heard of only when it answers a ping.
    if config.tcp.enabled && quic.idle_timeout_ms < 2 * session.ping_interval_ms {
        let least = 2 * session.ping_interval_ms;
        let reason =
            format!("must be at least {least}, twice session.ping_interval_ms, or quiet devices over TCP are cut off");
        return wrong("quic.idle_timeout_ms", reason);
    }
    within("session.max_frame_bytes", session.max_frame_bytes, FRAME_BYTES)?;
    within("session.open_within_ms", session.open_within_ms, OPEN_WITHIN_MS)?;
    within("session.release_within_ms", session.release_within_ms, RELEASE_WITHIN_MS)?;
    within("presence.offline_grace_ms", presence.offline_grace_ms, OFFLINE_GRACE_MS)?;
    within("presence.interval_ms", presence.interval_ms, PRESENCE_INTERVAL_MS)?;
    within("presence.location_kept_ms", presence.location_kept_ms, LOCATION_KEPT_MS)?;
    kept("limits.messages.burst", "limits.messages.per_second", rates.messages)?;
    kept("limits.sign_ins.burst", "limits.sign_ins.per_second", rates.sign_ins)?;
    within("store.cache_bytes", store.cache_bytes, CACHE_BYTES)?;
    within("retention.days", retention.days, RETENTION_DAYS)?;
    within("retention.entries_per_user", retention.entries_per_user, RETENTION_ENTRIES)?;
    within("retention.interval_minutes", retention.interval_minutes, RETENTION_MINUTES)?;

    if let Some(base) = &media.cdn_base {
        // An id is appended to the base, and the whole address must stay within the bound.
        let host = base.strip_prefix("https://").and_then(|rest| rest.split('/').next());
        if host.is_none_or(str::is_empty) || base.len() > URL_BYTES_MAX / 2 || base.contains(char::is_whitespace) {
            return wrong("media.cdn_base", "must be an https address, as in https://cdn.example.org/m/".to_owned());
        }
    }
    if !is_filter(&log.level) {
        let reason = format!("is {:?}: give a level or a filter, as in info or info,bimip::session=debug", log.level);
        return wrong("log.level", reason);
    }
    // A socket for both IP families may take more addresses; such a conflict shows when it is bound.
    let (devices, pages) = (config.listen, config.metrics_listen);
    if config.tcp.enabled && devices.port() != 0 && devices.port() == pages.port() && overlap(devices.ip(), pages.ip())
    {
        let reason = format!("is {pages}, and listen {devices} takes TCP there: choose another port");
        return wrong("metrics_listen", reason);
    }

    if client.server.as_ref().is_some_and(|server| !is_host_and_port(server)) {
        return wrong("client.server", "must be host:port, as in chat.example.org:4433 or [::1]:4433".to_owned());
    }
    if let Some(Err(error)) = client.as_eid.as_deref().map(Eid::parse) {
        return wrong("client.as", format!("is not a user: {error}"));
    }
    if let Some(Err(error)) = client.device.as_deref().map(DeviceId::parse) {
        return wrong("client.device", format!("is not a device: {error}"));
    }
    token.ttl()?;
    Ok(())
}

/// Checks that a user's or an address's burst has refilled by the time its rate is forgotten: otherwise whoever pauses for so long
/// would have a whole burst again.
fn kept(key: &'static str, rate_key: &str, Rate { per_second, burst }: Rate) -> Result<(), ConfigError> {
    let seconds = limits::ADDRESS_LIMIT_KEPT.as_secs();
    let most = u64::from(per_second) * seconds;
    if per_second == 0 || u64::from(burst) <= most {
        return Ok(());
    }
    let reason = format!(
        "is {burst}, must be at most {most}: after {seconds} s an unused rate is forgotten, and {rate_key} has refilled \
         no more by then"
    );
    wrong(key, reason)
}

/// Checks `[quic.lb]`.
fn balanced(lb: &LbConfig) -> Result<(), ConfigError> {
    within("quic.lb.config_id", lb.config_id, LB_CONFIG_ID)?;
    within("quic.lb.nonce_bytes", lb.nonce_bytes, LB_NONCE_BYTES)?;
    match &lb.server_id {
        None if lb.key_file.is_some() => {
            wrong("quic.lb.server_id", "is missing: set it next to quic.lb.key_file".to_owned())
        }
        Some(id) if id.len() + lb.nonce_bytes > LB_BYTES_MAX => {
            let left = LB_BYTES_MAX - lb.nonce_bytes;
            let reason =
                format!("has {} bytes: quic.lb.nonce_bytes leaves room for {left} of {LB_BYTES_MAX}", id.len());
            wrong("quic.lb.server_id", reason)
        }
        _ => Ok(()),
    }
}

fn wrong(key: &'static str, reason: String) -> Result<(), ConfigError> {
    Err(ConfigError::Check { key, reason })
}

fn within<T: PartialOrd + Display>(key: &'static str, value: T, range: RangeInclusive<T>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    wrong(key, format!("is {value}, must be {} to {}", range.start(), range.end()))
}

/// Whether the log accepts it as a filter. The client alone has no log, and accepts any text.
fn is_filter(text: &str) -> bool {
    #[cfg(feature = "server")]
    let is_known = bare_target(text).is_none() && tracing_subscriber::EnvFilter::try_new(text).is_ok();
    #[cfg(not(feature = "server"))]
    let is_known = true;
    !text.is_empty() && is_known
}

/// A part of a log filter that is a single word and not a level. The log would take it as the name of a target, so a misspelt
/// level would switch all logging off.
#[cfg(feature = "server")]
pub(crate) fn bare_target(filter: &str) -> Option<&str> {
    use tracing_subscriber::filter::LevelFilter;
    // As the log reads them: names, and numbers from 0 (off) to 5 (trace).
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    filter
        .split(',')
        .map(str::trim)
        .find(|word| !word.is_empty() && !word.contains(['=', '[', '{', '}', ']']) && !is_level(word))
}

/// Whether two sockets with the same port, each of one IP family, would conflict.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified())
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_clear = bare.map_or(!host.contains([':', '/', ' ']), |ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
        !host.is_empty() && host_is_clear && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ServerId, TokenConfig};

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        let message = config.check().unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn the_defaults_are_sound() {
        Config::default().check().unwrap();
    }

    #[test]
    fn a_refusal_names_the_key_and_says_what_to_do() {
        assert_eq!(
            refused(|c| c.tls.certificate = Some("a.pem".into())),
            "tls.key is missing: set it next to tls.certificate"
        );
        assert_eq!(refused(|c| c.tls.key = Some("a.key".into())), "tls.certificate is missing: set it next to tls.key");
        assert_eq!(refused(|c| c.quic.idle_timeout_ms = 1), "quic.idle_timeout_ms is 1, must be 5000 to 3600000");
        assert!(refused(|c| c.quic.keep_alive_ms = 120_000).starts_with("quic.keep_alive_ms must be below"));
        assert!(
            refused(|c| c.quic.idle_timeout_ms = 59_999).starts_with("quic.idle_timeout_ms must be at least 60000")
        );
        assert_eq!(
            refused(|c| c.quic.connection_receive_window = 4 * c.quic.stream_receive_window - 1),
            "quic.connection_receive_window must be at least 524288: quic.stream_receive_window for each lane"
        );
        assert!(refused(|c| c.quic.handshakes_before_retry = 1000).starts_with("quic.handshakes_before_retry"));
        assert!(
            refused(|c| c.quic.handshakes_unproven_per_second = 0)
                .starts_with("quic.handshakes_unproven_per_second is 0, must be 1 to")
        );
        assert!(refused(|c| c.session.max_frame_bytes = 16 * 1024).starts_with("session.max_frame_bytes is 16384"));
        assert_eq!(
            refused(|c| c.presence.location_kept_ms = 600_001),
            "presence.location_kept_ms is 600001, must be 0 to 600000"
        );
        assert!(refused(|c| c.domains = vec!["@x".to_owned()]).starts_with("domains has \"@x\""));
        for base in ["http://cdn.example/", "https://", "https:///x", "https://a b/"] {
            assert!(refused(|c| c.media.cdn_base = Some(base.to_owned())).starts_with("media.cdn_base"), "{base}");
        }
        for server in ["localhost", "localhost:0", "a b:1", "::1:4433", ":1", "https://a:1"] {
            assert!(refused(|c| c.client.server = Some(server.to_owned())).starts_with("client.server"), "{server}");
        }
        assert!(refused(|c| c.client.as_eid = Some("alice".to_owned())).starts_with("client.as"));
        assert!(refused(|c| c.client.device = Some("a b".to_owned())).starts_with("client.device"));
    }

    #[test]
    fn a_burst_that_is_forgotten_before_it_has_refilled_is_refused() {
        let rate = |per_second, burst| Rate { per_second, burst };
        assert_eq!(
            refused(|c| c.limits.sign_ins = rate(1, 601)),
            "limits.sign_ins.burst is 601, must be at most 600: after 600 s an unused rate is forgotten, and \
             limits.sign_ins.per_second has refilled no more by then"
        );
        assert!(refused(|c| c.limits.messages = rate(2, 1201)).starts_with("limits.messages.burst is 1201"));
        for good in [rate(1, 600), rate(1, 0), rate(0, 1_000_000)] {
            let mut config = Config::default();
            (config.limits.sign_ins, config.limits.messages) = (good, good);
            // Those of a session are kept for as long as it lasts.
            (config.limits.frames, config.limits.awareness) = (rate(1, 1_000_000), rate(1, 1_000_000));
            config.check().unwrap();
        }
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_filter_that_the_log_would_not_take_is_refused() {
        assert_eq!(
            refused(|c| c.log.level = "info,bimip=loud".to_owned()),
            "log.level is \"info,bimip=loud\": give a level or a filter, as in info or info,bimip::session=debug"
        );
        assert!(refused(|c| c.log.level.clear()).starts_with("log.level is \"\""));
        for typo in ["loud", "wran", "bimip", "info,wran", "debug, bimip::session", "6", "255", "info,7"] {
            assert!(refused(|c| c.log.level = typo.to_owned()).starts_with("log.level is "), "{typo}");
        }
        for good in ["WARN", "info", "warn,bimip=debug", "off", "0", "5", "info,bimip::session=trace,[session]=debug"] {
            let mut config = Config::default();
            config.log.level = good.to_owned();
            config.check().unwrap();
        }
    }

    #[test]
    fn metrics_on_the_port_of_the_devices_are_refused_where_both_are_tcp() {
        for (listen, metrics) in
            [("0.0.0.0:4433", "127.0.0.1:4433"), ("127.0.0.1:4433", "127.0.0.1:4433"), ("[::1]:4433", "[::]:4433")]
        {
            let set =
                |c: &mut Config| (c.listen, c.metrics_listen) = (listen.parse().unwrap(), metrics.parse().unwrap());
            let message = refused(set);
            assert_eq!(
                message,
                format!("metrics_listen is {metrics}, and listen {listen} takes TCP there: choose another port")
            );
            let mut config = Config::default();
            set(&mut config);
            config.tcp.enabled = false;
            config.check().unwrap();
        }
        for (listen, metrics) in [
            ("0.0.0.0:4433", "127.0.0.1:4434"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("192.0.2.1:4433", "127.0.0.1:4433"),
            ("0.0.0.0:4433", "[::1]:4433"),
        ] {
            let (listen, metrics_listen) = (listen.parse().unwrap(), metrics.parse().unwrap());
            Config { listen, metrics_listen, ..Config::default() }.check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_a_connection_id_is_refused() {
        assert_eq!(refused(|c| c.quic.lb.config_id = 7), "quic.lb.config_id is 7, must be 0 to 6");
        assert_eq!(refused(|c| c.quic.lb.nonce_bytes = 7), "quic.lb.nonce_bytes is 7, must be 8 to 18");
        assert_eq!(refused(|c| c.quic.lb.nonce_bytes = 19), "quic.lb.nonce_bytes is 19, must be 8 to 18");
        assert_eq!(
            refused(|c| c.quic.lb.key_file = Some("lb.key".into())),
            "quic.lb.server_id is missing: set it next to quic.lb.key_file"
        );
        let with_id = |bytes: usize, nonce_bytes| {
            move |c: &mut Config| {
                c.quic.lb.server_id = Some(ServerId::new(&vec![1; bytes]).unwrap());
                c.quic.lb.nonce_bytes = nonce_bytes;
            }
        };
        assert_eq!(
            refused(with_id(6, 14)),
            "quic.lb.server_id has 6 bytes: quic.lb.nonce_bytes leaves room for 5 of 19"
        );
        for (bytes, nonce_bytes) in [(1, 8), (5, 14), (11, 8), (1, 18)] {
            let mut config = Config::default();
            with_id(bytes, nonce_bytes)(&mut config);
            config.check().unwrap();
        }
    }

    #[test]
    fn a_ttl_is_a_number_and_a_unit() {
        let ttl = |text: &str| TokenConfig { ttl: text.to_owned(), scope: None }.ttl();
        for (text, seconds) in [("1s", 1), ("90m", 5400), ("24h", 86_400), ("3650d", 315_360_000)] {
            assert_eq!(ttl(text).unwrap().as_secs(), seconds);
        }
        for text in ["", "h", "24", "0s", "-1h", "+1h", "1.5h", "1 h", "3651d", "99999999999999999999d", "1w", "1µ"] {
            assert!(ttl(text).unwrap_err().to_string().starts_with("token.ttl is "), "{text}");
        }
    }

    #[test]
    fn servers_are_host_and_port() {
        for server in ["localhost:4433", "10.0.0.1:1", "[::1]:4433", "chat.example.org:443"] {
            let mut config = Config::default();
            config.client.server = Some(server.to_owned());
            config.check().unwrap();
        }
    }
}
