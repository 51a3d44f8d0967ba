//! A fleet's CA for tests, with certificates made by the `openssl` program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::tls::Files;

/// A CA and what it signed, in a folder.
pub(crate) struct Ca {
    pub(crate) directory: PathBuf,
}

impl Ca {
    pub(crate) fn new(directory: &Path, name: &str) -> Ca {
        fs::create_dir_all(directory).unwrap();
        let ca = Ca { directory: directory.into() };
        let constraints = "basicConstraints=critical,CA:TRUE";
        ca.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key \
             -out ca.pem -days 30 -subj /CN={name} -addext {constraints}"
        ));
        ca
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes `NAME.pem` and `NAME.key`.
    pub(crate) fn sign(&self, name: &str, san: &str, usage: &str, days: i32) {
        let extensions = format!("subjectAltName={san}\nextendedKeyUsage={usage}\n");
        fs::write(self.path("extensions"), extensions).unwrap();
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key \
             -out request -subj /CN=ignored"
        ));
        self.openssl(&format!(
            "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile extensions -out {name}.pem"
        ));
    }

    pub(crate) fn sign_agent(&self, name: &str, id: &str, days: i32) -> Files {
        self.sign(name, &format!("URI:sysflow:agent:{id}"), "clientAuth", days);
        Files {
            ca: self.path("ca.pem"),
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        }
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(&self.directory)
            .output()
            .expect("the program openssl is needed for certificates");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {line}: {text}");
    }
}
