//! When a certificate runs out.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The end of a certificate's validity, in Unix seconds; `None` if it cannot be read.
pub fn expires_at(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read_and_garbage_has_none() {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(expires_at(made.der()), Some(1_927_843_200));
        assert_eq!(expires_at(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }
}
