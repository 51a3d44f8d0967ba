//! From TOML to [`Config`]: every key has one line in [`Reader::key`].

use std::ops::Range;
use std::path::PathBuf;

use codec::Step;
use toml::de::{DeTable, DeValue};

use super::{BOUNDS, Config, Problem, SpoolSync, is_agent_id};
use crate::wear::STATE_BYTES_PER_DAY;

/// The smallest spool holds so many of the largest frames, so that dropping the oldest
/// leaves something.
const SPOOL_FRAMES_MIN: u64 = 8;

/// So that one can be held while another is made.
const MEMORY_FRAMES_MIN: u64 = 2;
/// A day's budget has room for so many of the largest frames, or none would ever go.
const DAY_FRAMES_MIN: u64 = 4;
/// State files alone may take half of it.
const WRITE_BYTES_MIN: u64 = 2 * STATE_BYTES_PER_DAY;

pub(super) fn config(text: &str) -> Result<Config, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, config: Config::default(), problems: Vec::new() };
    for error in errors {
        let line = error.span().map(|span| reader.line(&span));
        reader.problems.push(Problem { line, text: error.message().to_string() });
    }
    for (section, value) in table.get_ref() {
        let name = section.get_ref();
        match (SECTIONS.contains(&name.as_ref()), value.get_ref()) {
            (false, _) => reader.problem(&section.span(), format!("{name}: no such section")),
            (true, DeValue::Table(keys)) => {
                for (key, value) in keys {
                    let item = Item {
                        name: &format!("{name}.{}", key.get_ref()),
                        key: key.span(),
                        value: value.get_ref(),
                    };
                    reader.key(&item);
                }
            }
            (true, _) => reader.problem(&section.span(), format!("{name}: must be a section")),
        }
    }
    reader.finish()
}

const SECTIONS: [&str; 10] = [
    "agent",
    "collector",
    "spool",
    "flows",
    "frames",
    "kernel",
    "memory",
    "ladder",
    "privacy",
    "status",
];

struct Item<'a> {
    /// `section.key`
    name: &'a str,
    /// Where the key stands, bytes.
    key: Range<usize>,
    value: &'a DeValue<'a>,
}

struct Reader<'t> {
    text: &'t str,
    config: Config,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn key(&mut self, item: &Item<'_>) {
        let mut config = std::mem::take(&mut self.config);
        match item.name {
            "agent.id" => self.id(item, &mut config.agent.id),
            "collector.url" => self.url(item, &mut config.collector.url),
            "collector.ca" => self.path(item, &mut config.collector.ca),
            "collector.certificate" => self.path(item, &mut config.collector.certificate),
            "collector.key" => self.path(item, &mut config.collector.key),
            "collector.proxy" => self.proxy(item, &mut config.collector.proxy),
            "collector.upload_interval_s" => {
                self.number(item, &mut config.collector.upload_interval_s);
            }
            "collector.upload_bytes_max" => {
                self.number(item, &mut config.collector.upload_bytes_max);
            }
            "collector.bytes_per_day" => self.number(item, &mut config.collector.bytes_per_day),
            "spool.directory" => self.path(item, &mut config.spool.directory),
            "spool.bytes_max" => self.number(item, &mut config.spool.bytes_max),
            "spool.free_percent" => self.number(item, &mut config.spool.free_percent),
            "spool.sync" => self.choice(item, &SpoolSync::ALL, &mut config.spool.sync),
            "spool.sync_interval_s" => self.number(item, &mut config.spool.sync_interval_s),
            "spool.memory_bytes" => self.number(item, &mut config.spool.memory_bytes),
            "spool.write_bytes_per_day" => {
                self.number(item, &mut config.spool.write_bytes_per_day);
            }
            "flows.idle_timeout_s" => self.number(item, &mut config.flows.idle_timeout_s),
            "flows.active_timeout_s" => self.number(item, &mut config.flows.active_timeout_s),
            "frames.bytes_max" => self.number(item, &mut config.frames.bytes_max),
            "frames.age_max_s" => self.number(item, &mut config.frames.age_max_s),
            "frames.volume_age_max_s" => self.number(item, &mut config.frames.volume_age_max_s),
            "frames.generation_records_max" => {
                self.number(item, &mut config.frames.generation_records_max);
            }
            "kernel.ring_bytes" => {
                self.optional(item, &mut config.kernel.ring_bytes);
                if let Some(bytes) = config.kernel.ring_bytes
                    && !bytes.is_power_of_two()
                {
                    let name = item.name;
                    self.problem(&item.key, format!("{name} = {bytes}: must be a power of two"));
                }
            }
            "kernel.flow_entries" => self.optional(item, &mut config.kernel.flow_entries),
            "kernel.btf" => match item.value {
                DeValue::String(text) if text.is_empty() => {}
                _ => self.path(item, config.kernel.btf.insert(PathBuf::new())),
            },
            "memory.budget_bytes" => self.number(item, &mut config.memory.budget_bytes),
            "memory.processes_max" => self.optional(item, &mut config.memory.processes_max),
            "memory.text_bytes" => self.optional(item, &mut config.memory.text_bytes),
            "ladder.last_step" => {
                let steps = Step::ALL.map(|step| (step.name(), step));
                self.choice(item, &steps, &mut config.ladder.last_step);
            }
            "ladder.ring_percent" => self.number(item, &mut config.ladder.ring_percent),
            "ladder.processor_percent" => {
                self.number(item, &mut config.ladder.processor_percent);
            }
            "ladder.spool_percent" => self.number(item, &mut config.ladder.spool_percent),
            "ladder.hold_s" => self.number(item, &mut config.ladder.hold_s),
            "privacy.redact" => match item.value {
                DeValue::Boolean(value) => config.privacy.redact = *value,
                _ => self.wrong_type(item, "true or false"),
            },
            "privacy.redact_names" => self.names(item, &mut config.privacy.redact_names),
            "privacy.environment" => self.names(item, &mut config.privacy.environment),
            "status.file" => self.path(item, &mut config.status.file),
            name => self.problem(&item.key, format!("{name}: no such key")),
        }
        self.config = config;
    }

    fn number<T: TryFrom<u64>>(&mut self, item: &Item<'_>, target: &mut T) {
        let DeValue::Integer(integer) = item.value else {
            return self.wrong_type(item, "an integer");
        };
        let bound = BOUNDS.iter().find(|bound| bound.key == item.name);
        let (min, max) = bound.map_or((0, 0), |bound| (bound.min, bound.max));
        let value = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match value.filter(|value| (min..=max).contains(value)).map(T::try_from) {
            Some(Ok(value)) => *target = value,
            _ => {
                let (name, value) = (item.name, integer.as_str());
                self.problem(&item.key, format!("{name} = {value}: must be {min}..={max}"));
            }
        }
    }

    /// A number that stands for no choice when it is left out.
    fn optional<T: TryFrom<u64> + Default>(&mut self, item: &Item<'_>, target: &mut Option<T>) {
        let before = self.problems.len();
        let mut value = T::default();
        self.number(item, &mut value);
        if self.problems.len() == before {
            *target = Some(value);
        }
    }

    fn string(&mut self, item: &Item<'_>) -> Option<String> {
        match item.value {
            DeValue::String(text) => Some(text.to_string()),
            _ => {
                self.wrong_type(item, "a string");
                None
            }
        }
    }

    fn choice<T: Copy>(&mut self, item: &Item<'_>, known: &[(&str, T)], target: &mut T) {
        let Some(text) = self.string(item) else { return };
        match known.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => *target = *value,
            None => {
                let names: Vec<String> =
                    known.iter().map(|(name, _)| format!("{name:?}")).collect();
                let (name, names) = (item.name, names.join(", "));
                self.problem(&item.key, format!("{name} = {text:?}: must be one of {names}"));
            }
        }
    }

    fn path(&mut self, item: &Item<'_>, target: &mut PathBuf) {
        let Some(text) = self.string(item) else { return };
        if text.starts_with('/') {
            *target = text.into();
        } else {
            let name = item.name;
            self.problem(&item.key, format!("{name} = {text:?}: must be an absolute path"));
        }
    }

    fn names(&mut self, item: &Item<'_>, target: &mut Vec<String>) {
        let DeValue::Array(values) = item.value else {
            return self.wrong_type(item, "a list of names");
        };
        for value in values {
            let DeValue::String(name) = value.get_ref() else {
                return self.wrong_type(item, "a list of names");
            };
            if name.bytes().any(|byte| byte.is_ascii_alphanumeric()) {
                target.push(name.to_string());
            } else {
                let text = format!("{} = {name:?}: must have a letter or digit", item.name);
                self.problem(&value.span(), text);
            }
        }
    }

    fn id(&mut self, item: &Item<'_>, target: &mut Option<String>) {
        let Some(text) = self.string(item) else { return };
        if is_agent_id(&text) {
            *target = Some(text);
        } else {
            let name = item.name;
            let form = "[a-z0-9][a-z0-9._-]{0,62}";
            self.problem(&item.key, format!("{name} = {text:?}: must be {form}"));
        }
    }

    fn url(&mut self, item: &Item<'_>, target: &mut String) {
        let Some(text) = self.string(item) else { return };
        let url = text.strip_suffix('/').unwrap_or(&text);
        if is_collector_url(url) {
            *target = url.to_string();
        } else {
            let name = item.name;
            self.problem(&item.key, format!("{name} = {text:?}: must be https://HOST[:PORT]"));
        }
    }

    /// An empty text is no proxy.
    fn proxy(&mut self, item: &Item<'_>, target: &mut Option<String>) {
        let Some(text) = self.string(item) else { return };
        let url = text.strip_suffix('/').unwrap_or(&text);
        let is_proxy = url.strip_prefix("http://").is_some_and(|place| {
            place.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
                && is_collector_url(&format!("https://{place}"))
        });
        if is_proxy || url.is_empty() {
            *target = is_proxy.then(|| url.to_string());
        } else {
            let name = item.name;
            self.problem(&item.key, format!("{name} = {text:?}: must be http://HOST:PORT"));
        }
    }

    fn wrong_type(&mut self, item: &Item<'_>, wanted: &str) {
        let found = match item.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a section",
        };
        self.problem(&item.key, format!("{}: must be {wanted}, not {found}", item.name));
    }

    fn problem(&mut self, at: &Range<usize>, text: String) {
        let line = Some(self.line(at));
        self.problems.push(Problem { line, text });
    }

    fn line(&self, at: &Range<usize>) -> usize {
        1 + self.text.bytes().take(at.start).filter(|byte| *byte == b'\n').count()
    }

    /// What no single key shows: a key that is missing, and bounds that depend on others.
    fn finish(mut self) -> Result<Config, Vec<Problem>> {
        let Config { collector, spool, frames, .. } = &self.config;
        let mut missing = Vec::new();
        if self.problems.is_empty() {
            let frame = frames.bytes_max;
            if collector.url.is_empty() {
                missing.push("collector.url: is missing, give https://HOST[:PORT]".to_string());
            }
            if collector.upload_bytes_max < frame {
                let value = collector.upload_bytes_max;
                missing.push(format!(
                    "collector.upload_bytes_max = {value}: \
                     must be at least frames.bytes_max = {frame}"
                ));
            }
            let per_day = collector.bytes_per_day;
            if per_day > 0 && per_day < DAY_FRAMES_MIN * frame as u64 {
                missing.push(format!(
                    "collector.bytes_per_day = {per_day}: must be 0 (unlimited) or \
                     at least {DAY_FRAMES_MIN} times frames.bytes_max = {frame}"
                ));
            }
            let write = spool.write_bytes_per_day;
            if write > 0 && write < WRITE_BYTES_MIN {
                missing.push(format!(
                    "spool.write_bytes_per_day = {write}: must be 0 (unlimited) or \
                     at least {WRITE_BYTES_MIN}"
                ));
            }
            if spool.memory_bytes < MEMORY_FRAMES_MIN * frame as u64 {
                missing.push(format!(
                    "spool.memory_bytes = {}: \
                     must be at least {MEMORY_FRAMES_MIN} times frames.bytes_max = {frame}",
                    spool.memory_bytes
                ));
            }
            if spool.bytes_max < SPOOL_FRAMES_MIN * frame as u64 {
                let value = spool.bytes_max;
                missing.push(format!(
                    "spool.bytes_max = {value}: \
                     must be at least {SPOOL_FRAMES_MIN} times frames.bytes_max = {frame}"
                ));
            }
        }
        self.problems.extend(missing.into_iter().map(|text| Problem { line: None, text }));
        if self.problems.is_empty() {
            return Ok(self.config);
        }
        // The table is in the order of its names; a reader wants that of the lines.
        self.problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Err(self.problems)
    }
}

/// `https://`, a host and perhaps a port, nothing else.
fn is_collector_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let Some(authority) = uri.authority() else { return false };
    uri.scheme_str() == Some("https")
        && uri.path_and_query().is_none_or(|path| path == "/")
        && !url.ends_with('/')
        && !authority.host().is_empty()
        && !authority.as_str().contains('@')
        && authority.port().is_some() == after_host(authority.as_str()).contains(':')
}

/// What follows the host in `host[:port]`, where the host may be `[::1]`.
fn after_host(authority: &str) -> &str {
    match authority.rsplit_once(']') {
        Some((_, rest)) => rest,
        None => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collector_urls() {
        for url in ["https://c", "https://c.example:7443", "https://192.0.2.1", "https://[::1]:1"] {
            assert!(is_collector_url(url), "{url}");
        }
        for url in [
            "",
            "c",
            "c:7443",
            "http://c",
            "https://",
            "https://c/v1",
            "https://c?x",
            "https://c/",
            "https://u@c",
            "https://c:99999",
            "https://c:",
            "https://[::1",
        ] {
            assert!(!is_collector_url(url), "{url}");
        }
    }
}
