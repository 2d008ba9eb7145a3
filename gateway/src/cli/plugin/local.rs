//! The author's part: on files, without a gateway, with the sandbox and the limits of production.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clonegate_core::advice::Slot;
use clonegate_core::{Error, Result};
use clonegate_policy_host::{
    CallLimits, Compiler, Engine, INPUT_BYTES_MAX, Input, Limits, LinkLimits, Outcome, Plugin, Replay, check_settings,
    measure, read_records, scaffold,
};

use super::Component;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Form};
use crate::clock::Clock;

/// Largest file that is read as a module, bytes; the sandbox takes less.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Differences that are shown one by one.
const SHOWN: usize = 20;

/// Which decisions are asked again.
pub(super) struct Wanted {
    pub(super) since: Option<Duration>,
    pub(super) name: Option<String>,
    pub(super) verify: bool,
}

pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let object = || path.display().to_string();
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes));
    read.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found("no-such-file", "there is no such file").on(object()),
        _ => Error::invalid("cannot-read", "the file cannot be read").on(object()).because(e),
    })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(Error::invalid("file-too-large", format!("it has more than {} MiB", bytes_max >> 20)).on(object()));
    }
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = read(path, u64::try_from(INPUT_BYTES_MAX).unwrap_or(u64::MAX))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid("bad-input", "it is not UTF-8 text").on(path.display().to_string()))
}

/// The component with its settings, which are right when somebody gave them.
fn load(component: &Component, compiler: &Compiler) -> Result<(Arc<Plugin>, String)> {
    let settings = component.settings.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let bytes = read(&component.file, FILE_BYTES_MAX)?;
    let engine = Engine::new(Limits::default())?;
    let plugin = Plugin::load(&engine, &bytes, compiler).map_err(|e| e.on(component.file.display().to_string()))?;
    if let Some(file) = &component.settings {
        check_settings(&plugin, &CallLimits::default(), &settings).map_err(|e| e.on(file.display().to_string()))?;
    }
    Ok((plugin, settings))
}

pub(super) fn new(name: &str, sdk: Option<&Path>) -> Result<(), Failure> {
    for path in scaffold(Path::new(""), name, sdk)? {
        output::line(&path.display().to_string());
    }
    output::line(&format!("next: cd {name} && cargo test"));
    Ok(())
}

pub(super) fn pack(core: &Path, out: Option<PathBuf>) -> Result<(), Failure> {
    let component =
        clonegate_policy_host::pack(&read(core, FILE_BYTES_MAX)?).map_err(|e| e.on(core.display().to_string()))?;
    let out = out.unwrap_or_else(|| core.with_extension("component.wasm"));
    fs::write(&out, &component).map_err(|e| {
        Error::unavailable("cannot-write", "the file cannot be written").on(out.display().to_string()).because(e)
    })?;
    output::line(&format!("{}: {} bytes", out.display(), component.len()));
    Ok(())
}

pub(super) fn check(component: &Component, form: Form) -> Result<(), Failure> {
    let (plugin, settings) = load(component, &Compiler::this_program()?)?;
    check_settings(&plugin, &CallLimits::default(), &settings).map_err(|e| {
        e.on(component.file.display().to_string()).hint("it takes no question without settings; give some")
    })?;
    let info = plugin.info();
    if form == Form::Json {
        output::json(info);
        return Ok(());
    }
    let decides: Vec<_> = info.slots.iter().map(|s| s.name()).collect();
    output::facts(&[
        ("name", info.name.clone()),
        ("version", info.version.clone()),
        ("what", info.description.clone()),
        ("decides", decides.join(", ")),
        ("size", format!("{} bytes", info.bytes)),
        ("digest", info.digest.clone()),
        ("imports", if info.imports.is_empty() { "nothing".into() } else { info.imports.join(", ") }),
        ("settings", if component.settings.is_some() { "right".into() } else { "the defaults".into() }),
        ("a call may take", may_take(&usual_limits())),
    ]);
    Ok(())
}

/// What a call may take at a place in a chain that does not say otherwise.
fn usual_limits() -> LinkLimits {
    LinkLimits::of(&Limits::default(), &CallLimits::default())
}

fn may_take(limits: &LinkLimits) -> String {
    let LinkLimits { fuel, fuel_per_record, memory_bytes, time_ms } = limits;
    format!("{fuel} fuel and {fuel_per_record} for each record of the question, {}, {time_ms} ms", size(*memory_bytes))
}

fn size(bytes: usize) -> String {
    output::size(u64::try_from(bytes).unwrap_or(u64::MAX))
}

pub(super) fn run(component: &Component, input: &Path, form: Form) -> Result<(), Failure> {
    let asked = Input::parse(&read_text(input)?).map_err(|e| e.on(input.display().to_string()))?;
    let (plugin, settings) = load(component, &Compiler::Here)?;
    asked.fits(&plugin).map_err(|e| e.on(input.display().to_string()))?;
    let call = plugin.ask(&settings, &asked.context, &asked.question);
    if form == Form::Json {
        output::json(&call);
    } else {
        for (level, text) in &call.logs {
            output::line(&format!("{level}: {text}"));
        }
        match &call.outcome {
            Outcome::Answer(answer) => output::json(answer),
            Outcome::Failure(fault) | Outcome::Trap(fault) => {
                output::line(&format!("{}: {}", fault.code, fault.message))
            }
            Outcome::Skipped(why) => output::line(why),
        }
        let percent = call.fuel.saturating_mul(100) / call.fuel_limit.max(1);
        let limits = usual_limits();
        output::facts(&[
            ("fuel", format!("{} of {} ({percent} %)", call.fuel, call.fuel_limit)),
            ("memory", format!("{} of {}", size(call.memory), size(call.memory_limit))),
            ("time", format!("{} µs of {} ms", call.us, limits.time_ms)),
        ]);
    }
    if call.outcome.is_fault() {
        return Err(Failure { exit: 1, code: "plugin-failed".into(), text: "the plugin gave no answer".into() });
    }
    Ok(())
}

pub(super) fn bench(
    component: &Component,
    input: Option<&Path>,
    (datastores, bases): (u32, u32),
    runs: usize,
    form: Form,
) -> Result<(), Failure> {
    let (plugin, settings) = load(component, &Compiler::Here)?;
    let input = match input {
        Some(file) => Input::parse(&read_text(file)?).map_err(|e| e.on(file.display().to_string()))?,
        None => {
            let slot = plugin.info().slots.first().copied().unwrap_or(Slot::Placement);
            Input::sample(slot, datastores, bases)
        }
    };
    let measured = measure(&plugin, &settings, &input, runs)?;
    if form == Form::Json {
        output::json(&measured);
        return Ok(());
    }
    output::facts(&[
        ("answer", measured.outcome.clone()),
        ("median", format!("{:.1} µs over {} calls", measured.median_us, measured.runs)),
        ("p99", format!("{:.1} µs", measured.p99_us)),
        ("built-in rule", format!("{:.1} µs", measured.native_median_us)),
        ("fuel", format!("{} of {}", measured.fuel, measured.fuel_limit)),
        ("memory", size(measured.memory)),
    ]);
    Ok(())
}

pub(super) fn replay(component: &Component, records: &Path, wanted: &Wanted, form: Form) -> Result<(), Failure> {
    let (plugin, settings) = load(component, &Compiler::Here)?;
    let name = wanted.name.clone().unwrap_or_else(|| plugin.info().name.clone());
    let since_ms = since_ms(wanted.since);
    let mut replay = Replay::default();
    read_records(records, |record| {
        if record.context.now_ms >= since_ms {
            if wanted.verify {
                replay.verify(&plugin, &record);
            } else {
                replay.compare(&plugin, &name, &settings, &CallLimits::default(), &record);
            }
        }
        true
    })?;
    if form == Form::Json {
        output::json(&replay);
    } else {
        for d in replay.differences.iter().take(SHOWN) {
            output::line(&format!("{} {} {}: {}", d.decision, d.slot, d.subject, d.summary()));
        }
        if replay.different > SHOWN {
            output::line(&format!("and {} more; --output json lists up to 100", replay.different - SHOWN));
        }
        let Replay { asked, different, faults, fuel_max, .. } = replay;
        output::line(&format!("{asked} decisions, {different} different, {faults} failed, at most {fuel_max} fuel"));
    }
    if replay.different > 0 || replay.faults > 0 {
        let text = match wanted.verify {
            true => "the same component answered otherwise: the records or the engine are wrong",
            false => "it would have decided otherwise",
        };
        return Err(Failure { exit: 1, code: "differs".into(), text: text.into() });
    }
    if replay.asked == 0 {
        let none = Error::not_found("no-records", "there are no recorded decisions that it could be asked");
        let none = none.on(records.display().to_string());
        return Err(match wanted.verify {
            true => none.hint("--verify asks only those that this very component was asked, by its digest").into(),
            false => none.into(),
        });
    }
    Ok(())
}

/// The time so long ago.
pub(super) fn since_ms(since: Option<Duration>) -> u64 {
    let ago = since.map_or(u64::MAX, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    Clock::system().now_ms().saturating_sub(ago)
}
