//! `cargo xtask image`: the container image in which `cross` builds for the ARM targets, made of
//! Debian's packages alone.
//!
//! `cross/image/Dockerfile` is the only recipe. It begins with a bare Debian, which a registry of
//! images has; here it is made of a mirror's packages and handed to the engine under a name of
//! its own, so that all that follows is the same.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::workspace::{self, root, say, show};
use crate::{Result, debian, setup};

/// The image's name, as `Cross.toml` has it.
pub const NAME: &str = "localhost/sysflow-edge-cross";
/// The bare Debian's name, without its release.
const BASE: &str = "localhost/sysflow-edge-debian";
const FOLDER: &str = "cross/image";
/// How the recipe names its beginning, before and after the release.
const BEGINNING: (&str, &str) = ("ARG BASE=debian:", "-slim");

/// Open files of a process, and processes, that are plenty for a build.
const LIMIT: u64 = 4096;

/// A program that runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Docker, whose containers are a service's.
    Docker,
    /// Podman, whose containers are the caller's children.
    Podman,
}

impl Engine {
    /// Its program.
    pub fn program(self) -> &'static str {
        match self {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
        }
    }

    /// The one that `CROSS_CONTAINER_ENGINE` names, else one that works here, else podman, which
    /// is installed.
    ///
    /// # Errors
    /// If the one that is named is unknown, or there is none and it cannot be installed.
    pub fn find() -> Result<Engine> {
        let named = std::env::var("CROSS_CONTAINER_ENGINE").ok();
        match named.as_deref() {
            Some("docker") => return Ok(Engine::Docker),
            Some("podman") => return Ok(Engine::Podman),
            Some(other) => {
                return Err(format!(
                    "CROSS_CONTAINER_ENGINE is {other:?}: docker or podman is wanted"
                )
                .into());
            }
            None => {}
        }
        // A client of Docker without its service is no engine.
        if let Some(engine) = [Engine::Docker, Engine::Podman].into_iter().find(|e| e.works()) {
            return Ok(engine);
        }
        setup::podman()?;
        if Engine::Podman.works() {
            return Ok(Engine::Podman);
        }
        Err("`podman info` fails: no engine of containers works here".into())
    }

    fn works(self) -> bool {
        let mut info = self.call("info");
        info.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        info.status().is_ok_and(|status| status.success())
    }

    fn call(self, verb: &str) -> Command {
        let mut command = Command::new(self.program());
        command.arg(verb);
        command
    }

    /// Options of `run` and `build`. Podman would raise its containers' limits to a million, which
    /// not every machine lets it, and gives them a network of their own, which needs a firewall;
    /// what is done here needs neither.
    pub fn options(self) -> Vec<String> {
        use rustix::process::{Resource, getrlimit};
        if self == Engine::Docker {
            return Vec::new();
        }
        let mut options = vec!["--network".to_string(), "host".to_string()];
        for (name, resource) in [("nofile", Resource::Nofile), ("nproc", Resource::Nproc)] {
            let most = getrlimit(resource).maximum.unwrap_or(LIMIT).min(LIMIT);
            options.extend(["--ulimit".to_string(), format!("{name}={most}:{most}")]);
        }
        options
    }

    fn has(self, image: &str) -> bool {
        let mut inspect = self.call("image");
        inspect.args(["inspect", image]);
        inspect.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        inspect.status().is_ok_and(|status| status.success())
    }
}

/// Makes the image; what an earlier call has left is used again. The packages are from `mirror`,
/// or from where this machine has its own.
///
/// # Errors
/// If no engine works, or the mirror does not have a package.
pub fn run(mirror: Option<&str>) -> Result {
    make(Engine::find()?, mirror)
}

/// As [`run`], with an engine that was found already.
///
/// # Errors
/// As [`run`].
pub fn make(engine: Engine, mirror: Option<&str>) -> Result {
    let mirror = match mirror {
        Some(mirror) => mirror.to_string(),
        None => debian::mirror()?,
    };
    let mirror = mirror.trim_end_matches('/');
    let recipe = std::fs::read_to_string(root().join(FOLDER).join("Dockerfile"))
        .map_err(|e| format!("{FOLDER}/Dockerfile: {e}"))?;
    let release = release(&recipe)?;
    let base = format!("{BASE}:{release}");
    if !engine.has(&base) {
        bare(engine, release, mirror, &base)?;
    }
    say(&format!("{}: the image {NAME}, from {FOLDER}/Dockerfile", engine.program()));
    let mut build = engine.call("build");
    build.arg("--quiet").args(engine.options()).args(["--tag", NAME]);
    build.args(["--build-arg", &format!("BASE={base}")]);
    build.args(["--build-arg", &format!("MIRROR={mirror}")]).arg(root().join(FOLDER));
    workspace::run(build.stdin(Stdio::null()))
}

/// The release with which the recipe begins.
fn release(recipe: &str) -> Result<&str> {
    let (before, after) = BEGINNING;
    recipe
        .lines()
        .find_map(|line| line.strip_prefix(before)?.strip_suffix(after))
        .ok_or_else(|| format!("{FOLDER}/Dockerfile has no line {before}RELEASE{after}").into())
}

/// Makes a bare Debian of a mirror's packages, and hands it to the engine as `name`.
fn bare(engine: Engine, release: &str, mirror: &str, name: &str) -> Result {
    setup::bootstrap()?;
    say(&format!("a bare Debian {release} of the packages of {mirror}"));
    let folder = root().join("target/image");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("debian.tar");
    let made = bootstrap(release, mirror, &file).and_then(|()| {
        let mut import = engine.call("import");
        import.arg(&file).arg(name);
        workspace::run(import.stdin(Stdio::null()).stdout(Stdio::null()))
    });
    if file.exists() {
        std::fs::remove_file(file)?;
    }
    made
}

fn bootstrap(release: &str, mirror: &str, file: &Path) -> Result {
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", release]).arg(file).arg(mirror);
    let output =
        make.stdin(Stdio::null()).output().map_err(|e| format!("start {}: {e}", show(&make)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}: {}", show(&make), output.status, said.trim()).into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::targets;

    fn recipe() -> String {
        std::fs::read_to_string(root().join(FOLDER).join("Dockerfile")).unwrap()
    }

    /// Packages that the recipe installs.
    fn installed(recipe: &str) -> BTreeSet<String> {
        let recipe = recipe.replace("\\\n", " ");
        let (_, rest) = recipe.split_once("apt-get install").unwrap();
        let (words, _) = rest.split_once(';').unwrap();
        words.split_whitespace().filter(|word| !word.starts_with('-')).map(String::from).collect()
    }

    #[test]
    fn the_image_has_what_builds_install_here_and_nothing_else() {
        let mut wanted: BTreeSet<String> =
            setup::for_devices().into_iter().map(String::from).collect();
        for target in targets::all().unwrap().into_values().filter(targets::Target::is_arm) {
            let foreign = |name: &str| format!("{name}:{}", target.debian);
            if target.is_static() {
                wanted.insert(foreign("musl-dev"));
            } else {
                wanted.extend(["libelf-dev", "zlib1g-dev"].map(foreign));
                wanted.extend(target.packages);
            }
        }
        assert_eq!(installed(&recipe()), wanted);
    }

    #[test]
    fn the_bare_debian_is_of_the_recipes_release() {
        assert_eq!(release(&recipe()).unwrap(), "bookworm");
        let refused = release("FROM debian\n").unwrap_err().to_string();
        assert!(refused.contains("ARG BASE=debian:RELEASE-slim"), "{refused}");
        // It is named once, so that a bare Debian made here cannot be of another.
        assert_eq!(recipe().matches("bookworm").count(), 1);
    }

    #[test]
    fn containers_of_podman_get_no_more_than_this_process() {
        let options = Engine::Podman.options().join(" ");
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let most = most.map_or(LIMIT, |most| most.min(LIMIT));
        assert!(options.contains(&format!("--ulimit nofile={most}:{most}")), "{options}");
        assert!(options.contains("--ulimit nproc="), "{options}");
        assert!(Engine::Docker.options().is_empty());
    }
}
