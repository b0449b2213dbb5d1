//! The kernel's UDP counters on this machine.

/// Datagrams that the kernel has dropped since it started, for all programs, because a socket's receive buffer was
/// full. `None` where the kernel does not report it.
pub(super) fn dropped() -> Option<u64> {
    parsed(&std::fs::read_to_string("/proc/net/snmp").ok()?)
}

fn parsed(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == "RcvbufErrors")?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_is_found_by_its_name() {
        let snmp =
            "Ip: A B\nIp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors Other\nUdp: 9 8 66 5\nUdpLite: X\nUdpLite: 1\n";
        assert_eq!(parsed(snmp), Some(66));
        assert_eq!(parsed("Udp: InDatagrams\nUdp: 9\n"), None);
        assert_eq!(parsed(""), None);
    }
}
