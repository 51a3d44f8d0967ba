use super::*;

const EXAMPLE: &str = include_str!("../../agent.toml");

fn problems(text: &str) -> Vec<String> {
    match Config::parse(Path::new("agent.toml"), text) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(String::from).collect(),
    }
}

#[test]
fn the_shipped_file_equals_the_defaults() {
    let mut shipped = Config::parse(Path::new("agent.toml"), EXAMPLE).unwrap();
    assert_eq!(shipped.collector.url, "https://collector.example:7443");
    shipped.collector.url.clear();
    assert_eq!(shipped, Config::default());
}

/// Also those that are left out by default, as comments.
#[test]
fn the_shipped_file_lists_every_bound() {
    let mut section = "";
    let mut listed = 0;
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, rest)) = line.trim_start_matches('#').split_once(" = ") {
            let key = format!("{section}.{key}");
            if let Some(bound) = BOUNDS.iter().find(|bound| bound.key == key) {
                let range = format!("{}..{}", bound.min, bound.max);
                assert!(rest.contains(&range), "{line}: does not say {range}");
                listed += 1;
            }
        }
    }
    assert_eq!(listed, BOUNDS.len());
}

#[test]
fn a_few_lines_are_a_configuration() {
    let config = Config::parse(Path::new("x"), "collector.url = \"https://[::1]:7443/\"").unwrap();
    assert_eq!(config.collector.url, "https://[::1]:7443");
    let with_proxy = |proxy: &str| {
        let text = format!("collector.url = \"https://c\"\ncollector.proxy = {proxy:?}\n");
        Config::parse(Path::new("x"), &text).map(|config| config.collector.proxy)
    };
    for good in ["http://proxy:3128", "http://10.0.0.1:80", "http://[::1]:3128"] {
        assert_eq!(with_proxy(good).unwrap().as_deref(), Some(good));
        // What is allowed here, the client takes.
        assert!(ureq::Proxy::new(good).is_ok());
    }
    assert_eq!(with_proxy("").unwrap(), None);
    for bad in ["proxy:3128", "https://proxy:3128", "http://proxy", "http://me:pw@proxy:1"] {
        assert!(with_proxy(bad).unwrap_err().to_string().contains("must be http://HOST:PORT"));
    }
    assert_eq!(config.spool, Config::default().spool);
}

#[test]
fn all_problems_are_told_at_once_with_key_value_and_line() {
    let text = "\
agent.id = \"GW 1\"
[collector]
url = \"http://collector\"
upload_interval_s = 0
certificate = \"agent.pem\"
ulpoad_bytes_max = 1
key = 7
[kernel]
ring_bytes = 100_000
btf = \"\"
[flows]
idle_timeout_s = \"60\"
[flow]
x = 1
[memory]
processes_max = 99999999999999999999999
[privacy]
redact = \"yes\"
redact_names = 1
";
    assert_eq!(
        problems(text),
        [
            "agent.toml: agent.id = \"GW 1\": must be [a-z0-9][a-z0-9._-]{0,62} (line 1)",
            "agent.toml: collector.url = \"http://collector\": must be https://HOST[:PORT] \
             (line 3)",
            "agent.toml: collector.upload_interval_s = 0: must be 1..=86400 (line 4)",
            "agent.toml: collector.certificate = \"agent.pem\": must be an absolute path \
             (line 5)",
            "agent.toml: collector.ulpoad_bytes_max: no such key (line 6)",
            "agent.toml: collector.key: must be a string, not an integer (line 7)",
            "agent.toml: kernel.ring_bytes = 100000: must be a power of two (line 9)",
            "agent.toml: flows.idle_timeout_s: must be an integer, not a string (line 12)",
            "agent.toml: flow: no such section (line 13)",
            "agent.toml: memory.processes_max = 99999999999999999999999: \
             must be 64..=1048576 (line 16)",
            "agent.toml: privacy.redact: must be true or false, not a string (line 18)",
            "agent.toml: privacy.redact_names: must be a list of names, not an integer (line 19)",
        ]
    );
}

#[test]
fn a_spool_is_synced_in_one_of_three_ways() {
    let sync = |text: &str| {
        let text = format!("collector.url = \"https://c\"\nspool.sync = {text:?}\n");
        Config::parse(Path::new("agent.toml"), &text).map(|config| config.spool.sync)
    };
    for (name, value) in SpoolSync::ALL {
        assert_eq!(sync(name).unwrap(), value);
    }
    assert_eq!(
        sync("never").unwrap_err().to_string(),
        "agent.toml: spool.sync = \"never\": must be one of \"frame\", \"interval\", \
         \"memory-first\" (line 2)"
    );
}

#[test]
fn names_of_secrets_are_names() {
    assert_eq!(
        problems("collector.url = \"https://c\"\nprivacy.redact_names = [\"pin\", \"--\"]\n"),
        ["agent.toml: privacy.redact_names = \"--\": must have a letter or digit (line 2)"]
    );
}

#[test]
fn bounds_that_depend_on_each_other() {
    let text = "\
[collector]
url = \"https://c\"
upload_bytes_max = 16384
[spool]
bytes_max = 1048576
[frames]
bytes_max = 262144
";
    assert_eq!(
        problems(text),
        [
            "agent.toml: collector.upload_bytes_max = 16384: \
             must be at least frames.bytes_max = 262144",
            "agent.toml: spool.bytes_max = 1048576: \
             must be at least 8 times frames.bytes_max = 262144",
        ]
    );
}

#[test]
fn budgets_have_room_for_frames() {
    let text = "\
[collector]
url = \"https://c\"
bytes_per_day = 262143
[spool]
sync = \"memory-first\"
memory_bytes = 131071
";
    let with_limit = text.replace("memory-first", "frame") + "write_bytes_per_day = 16777215\n";
    assert_eq!(
        problems(&with_limit)[1..],
        [
            "agent.toml: spool.write_bytes_per_day = 16777215: must be 0 (unlimited) or \
             at least 16777216",
            "agent.toml: spool.memory_bytes = 131071: \
             must be at least 2 times frames.bytes_max = 65536",
        ]
    );
    assert_eq!(
        problems(text),
        [
            "agent.toml: collector.bytes_per_day = 262143: must be 0 (unlimited) or \
             at least 4 times frames.bytes_max = 65536",
            "agent.toml: spool.memory_bytes = 131071: \
             must be at least 2 times frames.bytes_max = 65536",
        ]
    );
}

#[test]
fn a_file_without_url_and_a_broken_one() {
    assert_eq!(problems(""), ["agent.toml: collector.url: is missing, give https://HOST[:PORT]"]);
    let broken = problems("[collector]\nurl = \"https://c\nca = \"/x\"\n[spool\n");
    assert!(broken.len() >= 2, "{broken:#?}");
    assert!(broken[0].ends_with("(line 2)") && broken[1].ends_with("(line 4)"), "{broken:#?}");
}

#[test]
fn agent_ids() {
    for id in ["a", "0", "gw-0001", "a.b_c", &"x".repeat(63)] {
        assert!(is_agent_id(id), "{id}");
    }
    for id in ["", "-a", ".a", "A", "a b", "a/b", "ä", &"x".repeat(64)] {
        assert!(!is_agent_id(id), "{id}");
    }
}
