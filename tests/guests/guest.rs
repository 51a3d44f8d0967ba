//! A guest: what `cargo xtask vm` laid out, and how it is booted.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tests::Result;

use crate::cpio::Archive;

/// Time between two looks at a running guest.
const PAUSE: Duration = Duration::from_millis(200);
/// Lines of the console that an error shows.
const TAIL_LINES: usize = 25;

/// What was laid out.
#[derive(Debug, Deserialize)]
pub(crate) struct Guest {
    /// Its name in tests/kernels.toml.
    pub(crate) name: String,
    /// Debian's name of its architecture.
    pub(crate) architecture: String,
    kernel: PathBuf,
    /// The kernel's release.
    pub(crate) release: String,
    /// Whether it has tests of its own, and not only suites.
    pub(crate) has_tests: bool,
    /// Suites of `tests/e2e` that run in it.
    pub(crate) suites: Vec<String>,
    /// Size of the minimised types, where the guest has such a file, bytes.
    pub(crate) types_bytes: Option<u64>,
    /// Whether it runs programs of the 32-bit architecture too.
    pub(crate) compat: bool,
    jit: Option<bool>,
}

/// One of a guest's boots.
#[derive(Debug)]
pub(crate) struct Boot {
    /// What becomes its initial file system, in the guest's folder.
    pub(crate) root: &'static str,
    pub(crate) memory_mb: u32,
    /// A guest that has said nothing of its end by then hangs.
    pub(crate) deadline: Duration,
}

/// What a guest said: lines by key, in order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    lines: BTreeMap<String, Vec<String>>,
    /// From the start of the emulator to its end.
    pub(crate) took: Duration,
}

impl Told {
    /// All lines of a key.
    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.lines.get(key).map_or(&[], Vec::as_slice)
    }

    /// The line of a key; empty if the guest did not say it.
    pub(crate) fn one(&self, key: &str) -> &str {
        self.all(key).first().map_or("", String::as_str)
    }
}

impl Guest {
    /// Reads `guest.json` of a folder.
    pub(crate) fn read(folder: &Path) -> Result<Guest> {
        let path = folder.join("guest.json");
        let bytes = std::fs::read(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
        Ok(serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    /// Boots it with `files` (path in the guest, permissions, content) added to what was laid
    /// out, and waits for its end. What it wrote on the console stays in `folder`.
    pub(crate) fn boot(
        &self,
        boot: &Boot,
        files: &[(String, u32, Vec<u8>)],
        folder: &Path,
    ) -> Result<Told> {
        let mut archive = Archive::default();
        archive.add_console();
        archive.add_tree(&folder.join(boot.root))?;
        for parent in ["etc", "etc/sysflow", "etc/sysflow/pki"] {
            archive.add_folder(parent);
        }
        for (name, mode, content) in files {
            archive.add_file(name, *mode, content);
        }
        let initial = folder.join(format!("{}.initramfs", boot.root));
        std::fs::write(&initial, archive.finish())?;
        let console = folder.join(format!("{}.console", boot.root));
        let mut command = self.emulator(boot.memory_mb)?;
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&initial);
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .stderr(File::create(folder.join("emulator.log"))?)
            .spawn()
            .map_err(|e| format!("start {}: {e}", command.get_program().display()))?;
        let mut ended = false;
        while !ended && start.elapsed() < boot.deadline {
            std::thread::sleep(PAUSE);
            ended = child.try_wait()?.is_some();
        }
        if !ended {
            child.kill()?;
            child.wait()?;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&console)?).replace('\r', "");
        let mut told = told(&text);
        told.took = start.elapsed();
        if told.all("end").is_empty() {
            let emulator = std::fs::read_to_string(folder.join("emulator.log"))?;
            let lines: Vec<&str> = text.lines().chain(emulator.lines()).collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
            let (seconds, tail) = (told.took.as_secs(), tail.join("\n  "));
            return Err(format!("no end after {seconds} s; the console ends:\n  {tail}").into());
        }
        Ok(told)
    }

    /// What the guest's own script reads before it does anything.
    pub(crate) fn settings(&self) -> String {
        let output = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M:%S"]).output();
        let now = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string());
        let jit = self.jit.map_or("", |on| if on { "1" } else { "0" });
        let now = now.unwrap_or_default();
        format!("NOW=\"{now}\"\nJIT=\"{jit}\"\n")
    }

    fn emulator(&self, memory_mb: u32) -> Result<Command> {
        // The emulator, the machine, its processor, console and network card.
        let words = match self.architecture.as_str() {
            "arm64" => {
                ["qemu-system-aarch64", "virt", "cortex-a57", "ttyAMA0", "virtio-net-device"]
            }
            "armhf" => ["qemu-system-arm", "virt", "cortex-a15", "ttyAMA0", "virtio-net-device"],
            "amd64" => {
                // QEMU 7.2 spoils the flags of cmpxchg16b, on which newer kernels die.
                let processor = "max,la57=off,cx16=off";
                ["qemu-system-x86_64", "q35", processor, "ttyS0", "virtio-net-pci,romfile="]
            }
            other => return Err(format!("no emulator is known for {other}").into()),
        };
        let [program, machine, processor, console, card] = words;
        let mut command = Command::new(program);
        command
            .args(["-M", machine, "-cpu", processor, "-accel", "tcg", "-smp", "2"])
            .args(["-m", &memory_mb.to_string(), "-nographic", "-nodefaults", "-serial", "stdio"])
            .args(["-no-reboot", "-netdev", "user,id=n", "-device", &format!("{card},netdev=n")])
            .args(["-append", &format!("console={console} quiet panic=-1")]);
        Ok(command)
    }
}

fn told(console: &str) -> Told {
    let mut told = Told::default();
    for line in console.lines() {
        let Some((key, text)) = line.strip_prefix('@').and_then(|line| line.split_once(' ')) else {
            continue;
        };
        told.lines.entry(key.to_string()).or_default().push(text.to_string());
    }
    told
}
