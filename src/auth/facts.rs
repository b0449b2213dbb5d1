//! The fields of a certificate that an operator wants to see.

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

#[cfg(test)]
mod tests {
    use super::*;

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
