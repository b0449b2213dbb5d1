//! `bimip certs`: makes a development certificate authority and a server certificate issued by it.

use std::path::PathBuf;

use serde::Serialize;

use super::options::ConfigFile;
use super::{Failure, say};
use crate::auth::dev::{self, Certificates};

/// Make a development certificate authority and a server certificate; existing files are kept
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Folder for the files
    #[arg(value_name = "DIR", default_value = "certs")]
    folder: PathBuf,
    /// Host name or IP address for the certificate, besides localhost; may be given several times
    #[arg(long = "name", value_name = "HOST", value_delimiter = ',')]
    names: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Flags {
    dev_names: Option<Vec<String>>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.file.load(Flags { dev_names: self.names })?;
        let Certificates { ca, certificate, key } = dev::certificates(&self.folder, &config.dev_names)?;
        say(&format!("{}: what clients trust (--ca)", ca.display()))?;
        say(&format!("{}: the server's certificate (tls.certificate)", certificate.display()))?;
        say(&format!("{}: its private key (tls.key)", key.display()))?;
        Ok(())
    }
}
