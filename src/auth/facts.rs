//! The fields of a certificate that an operator wants to see, and what is wrong with a chain.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The fields of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// From when it is valid, in Unix seconds.
    pub not_before: i64,
    /// Until when it is valid, in Unix seconds.
    pub not_after: i64,
    /// Host names and IP addresses that it is for.
    pub names: Vec<String>,
    /// The subject.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
}

impl CertificateFacts {
    /// Reads the fields without verifying anything; `None` if it is not a certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<CertificateFacts> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()?.map(|names| &names.value.general_names);
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match **bytes {
                [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
                ref bytes => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            },
            _ => None,
        };
        Some(CertificateFacts {
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            names: names.into_iter().flatten().filter_map(name).collect(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
        })
    }
}

/// What a certificate chain says of itself.
#[derive(Debug)]
pub struct ChainFacts {
    /// Of each certificate, the server's own first.
    pub certificates: Vec<CertificateFacts>,
    /// From when all of them are valid, in Unix seconds.
    pub not_before: i64,
    /// Until when all of them are valid, in Unix seconds.
    pub not_after: i64,
}

/// Why no client accepts a chain, as far as the chain itself tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ChainFault {
    #[error("a certificate of the chain cannot be understood")]
    Unreadable,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it ran out {days} days ago")]
    RanOut { days: i64 },
    #[error("it is for no name")]
    NoName,
    #[error("the chain is not in order")]
    Disorder,
}

impl ChainFault {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            ChainFault::Unreadable => "have it issued anew, as X.509 version 3",
            ChainFault::NotYet => "set the clock, or have it issued anew",
            ChainFault::RanOut { .. } => "renew it; the running server takes it up by itself",
            ChainFault::NoName => "clients look at subjectAltName alone: have it issued with the names that they dial",
            ChainFault::Disorder => {
                "put the server's certificate first, and then each one's issuer, without the root (fullchain.pem)"
            }
        }
    }
}

impl ChainFacts {
    /// Reads the fields without verifying anything.
    ///
    /// # Errors
    /// [`ChainFault::Unreadable`] if one of them is not a certificate, or there is none.
    pub fn read(chain: &[CertificateDer<'_>]) -> Result<ChainFacts, ChainFault> {
        let certificates: Option<Vec<_>> = chain.iter().map(CertificateFacts::read).collect();
        let certificates = certificates.ok_or(ChainFault::Unreadable)?;
        let not_before = certificates.iter().map(|facts| facts.not_before).max().ok_or(ChainFault::Unreadable)?;
        let not_after = certificates.iter().map(|facts| facts.not_after).min().ok_or(ChainFault::Unreadable)?;
        Ok(ChainFacts { certificates, not_before, not_after })
    }

    /// Why no client accepts it at `now` (Unix seconds).
    pub fn faults(&self, now: i64) -> Vec<ChainFault> {
        let in_order = self.certificates.windows(2).all(|pair| pair[0].issuer == pair[1].subject);
        let days = (now - self.not_after) / (24 * 3600);
        [
            (self.not_before > now, ChainFault::NotYet),
            (self.not_after < now, ChainFault::RanOut { days }),
            (self.certificates.first().is_some_and(|facts| facts.names.is_empty()), ChainFault::NoName),
            (!in_order, ChainFault::Disorder),
        ]
        .into_iter()
        .filter_map(|(is_so, fault)| is_so.then_some(fault))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_valid_for_as_long_as_each_of_its_certificates_and_says_what_is_wrong_with_it() {
        const DAY: i64 = 24 * 3600;
        let facts = |subject: &str, issuer: &str, not_before, not_after| CertificateFacts {
            not_before,
            not_after,
            names: vec!["chat.example.org".to_owned()],
            subject: subject.to_owned(),
            issuer: issuer.to_owned(),
        };
        let chain = |certificates: Vec<CertificateFacts>| ChainFacts {
            not_before: certificates.iter().map(|facts| facts.not_before).max().unwrap(),
            not_after: certificates.iter().map(|facts| facts.not_after).min().unwrap(),
            certificates,
        };
        let good = chain(vec![facts("chat", "middle", 0, 9 * DAY), facts("middle", "root", DAY, 5 * DAY)]);
        assert_eq!(good.faults(2 * DAY), []);
        assert_eq!(good.faults(DAY - 1), [ChainFault::NotYet]);
        assert_eq!(good.faults(8 * DAY), [ChainFault::RanOut { days: 3 }], "its intermediate");
        let mut bad = chain(vec![facts("chat", "root", 0, 9 * DAY), facts("middle", "root", 0, 9 * DAY)]);
        bad.certificates[0].names.clear();
        assert_eq!(bad.faults(0), [ChainFault::NoName, ChainFault::Disorder]);

        let issue = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["chat.example.org".to_owned()]).unwrap();
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(year, 1, 1));
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let (long, short) = (issue(2040), issue(2030));
        let read = ChainFacts::read(&[long, short.clone()]).unwrap();
        assert_eq!(read.not_after, CertificateFacts::read(&short).unwrap().not_after);
        assert_eq!(ChainFacts::read(&[short, CertificateDer::from(vec![1])]).unwrap_err(), ChainFault::Unreadable);
        assert!(ChainFacts::read(&[]).is_err());
    }

    #[test]
    fn a_certificate_says_until_when_for_whom_and_by_whom() {
        let mut params = rcgen::CertificateParams::new(vec![
            "chat.example.org".to_owned(),
            "192.0.2.7".to_owned(),
            "2001:db8::1".to_owned(),
        ])
        .unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 2, 3);
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        params.distinguished_name.push(rcgen::DnType::CommonName, "chat");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let facts = CertificateFacts::read(certificate.der()).unwrap();
        assert_eq!(facts.names, ["chat.example.org", "192.0.2.7", "2001:db8::1"]);
        assert_eq!((facts.not_before, facts.not_after), (1_896_307_200, 1_927_843_200));
        assert!(facts.subject.contains("chat") && facts.subject == facts.issuer);
        assert_eq!(CertificateFacts::read(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
