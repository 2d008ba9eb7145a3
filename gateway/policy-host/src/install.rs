//! Puts a new version of a plugin to work: load, check settings, replay, exchange. Whatever fails keeps the old one at work.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};
use serde::Serialize;

use crate::binding::Mode;
use crate::compile::Compiler;
use crate::host::{Changing, PolicyHost};
use crate::limits::CallLimits;
use crate::plugin::{Plugin, PluginInfo};
use crate::previous::{Previous, Role};
use crate::replay::Replay;

/// Share of replayed questions that a new version may fail, percent.
const FAILURES_PERCENT_MAX: usize = 5;

/// What is installed under a name.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) plugin: Option<Arc<Plugin>>,
    /// The version before, for a rollback.
    pub(crate) previous: Option<Previous>,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) embedded: bool,
    pub(crate) problem: Option<String>,
    /// The file in the watched directory as it was last looked at.
    stamp: Option<(SystemTime, u64)>,
}

/// How an install goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct InstallOptions {
    /// Take a version that answers recorded questions otherwise than the installed one.
    pub accept_differences: bool,
    /// Do everything but the exchange.
    pub dry_run: bool,
}

/// What an install did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstallReport {
    /// The name that it is installed under.
    pub name: String,
    /// What was installed.
    pub info: PluginInfo,
    /// The version that it replaced.
    pub replaced: Option<String>,
    /// What came of the last recorded decisions.
    pub replay: Replay,
    /// False for a dry run, and when the same bytes were installed already.
    pub changed: bool,
}

impl PolicyHost {
    /// Installs a component under a name (its own when none is given). Blocks for as long as compiling and replaying take.
    ///
    /// # Errors
    /// Those of [`Plugin::load`]; `bad-settings` (the settings in a chain are refused, with the JSON path), `fails-on-replay`,
    /// `differs` (invalid). The installed version stays at work, and [`PolicyHost::list`] says why.
    pub fn install(&self, name: Option<&str>, bytes: &[u8], options: InstallOptions) -> Result<InstallReport> {
        let plugin = match self.load(bytes, &self.settings.compiler) {
            Ok(plugin) => plugin,
            Err(e) => {
                if let Some(name) = name {
                    self.refuse(name, "load", &e);
                }
                return Err(e);
            }
        };
        let own = plugin.info().name.clone();
        let name: Name = name.unwrap_or(&own).parse()?;
        let name = name.as_str();
        let changing = self.changing.lock();
        self.ensure(&changing, name);
        let (old, old_bytes) = self.entry(name, |entry| (entry.plugin.clone(), Arc::clone(&entry.bytes)));
        let mut report = InstallReport {
            name: name.to_owned(),
            info: plugin.info().clone(),
            replaced: old.as_ref().map(|p| p.info().version.clone()),
            replay: Replay::default(),
            changed: false,
        };
        if old.as_ref().is_some_and(|old| old.info().digest == plugin.info().digest) {
            self.entry(name, |entry| entry.problem = None);
            return Ok(report);
        }
        if let Err((step, e)) =
            self.try_out(name, &plugin, old.is_some() && !options.accept_differences, &mut report.replay)
        {
            self.entry(name, |entry| entry.problem = Some(problem(step, &e)));
            return Err(e);
        }
        if options.dry_run {
            return Ok(report);
        }
        let previous = old.map(|old| Previous::of(old, old_bytes));
        self.keep(name, previous.as_ref(), bytes)?;
        let (bytes, stamp) = (bytes.into(), self.file(name).and_then(|path| stamp(&path)));
        self.entry(name, |entry| {
            let previous = previous.or(entry.previous.take());
            *entry = Entry { plugin: Some(plugin), previous, bytes, embedded: false, problem: None, stamp };
        });
        report.changed = true;
        self.relink(&changing, self.chains());
        tracing::info!(plugin = name, version = report.info.version, "a plugin was installed");
        Ok(report)
    }

    /// Brings the version before back, and keeps the present one for the next rollback. `dry_run` only says which it would be.
    ///
    /// # Errors
    /// `no-such-plugin` (not found), `nothing-to-roll-back` (conflict); those of [`Plugin::load`].
    pub fn rollback(&self, name: &str, dry_run: bool) -> Result<PluginInfo> {
        let changing = self.changing.lock();
        let (before, present) = {
            let entries = self.entries.lock();
            let entry = entries.get(name).ok_or_else(|| no_such(name))?;
            let present = entry.plugin.as_ref().map(|p| Previous::of(Arc::clone(p), Arc::clone(&entry.bytes)));
            (entry.previous.clone(), present)
        };
        let Some(Previous { bytes, plugin: loaded, .. }) = before else {
            return Err(
                Error::conflict("nothing-to-roll-back", "there is no version before this one").on(name.to_owned())
            );
        };
        let plugin = match loaded {
            Some(plugin) => plugin,
            None => self.load(&bytes, &self.settings.compiler).map_err(|e| e.on(name.to_owned()))?,
        };
        if dry_run {
            return Ok(plugin.info().clone());
        }
        self.keep(name, present.as_ref(), &bytes)?;
        let (info, stamp) = (plugin.info().clone(), self.file(name).and_then(|path| stamp(&path)));
        self.entry(name, |entry| {
            *entry = Entry { plugin: Some(plugin), previous: present, bytes, embedded: false, problem: None, stamp };
        });
        self.relink(&changing, self.chains());
        Ok(info)
    }

    /// Removes an installed plugin and the version before it; an embedded one of that name stands in again. Chains that name it go
    /// on without. `dry_run` only says whether it could be removed.
    ///
    /// # Errors
    /// `no-such-plugin` (not found), `embedded-plugin` (denied).
    pub fn remove(&self, name: &str, dry_run: bool) -> Result<()> {
        let changing = self.changing.lock();
        let embedded = self.entries.lock().get(name).map(|entry| entry.embedded).ok_or_else(|| no_such(name))?;
        if embedded {
            return Err(Error::denied("embedded-plugin", "it is part of the program and cannot be removed")
                .on(name.to_owned())
                .hint("take it out of the chains in the configuration"));
        }
        if dry_run {
            return Ok(());
        }
        let kept =
            self.settings.plugins.iter().flat_map(|d| [Role::Previous, Role::Kept].map(|role| role.file(d, name)));
        for path in self.file(name).into_iter().chain(kept) {
            remove_file(&path)?;
        }
        self.entries.lock().remove(name);
        self.ensure(&changing, name);
        self.relink(&changing, self.chains());
        Ok(())
    }

    /// Looks at the watched directory once: installs what is new or changed, removes what is gone. What is refused is looked at
    /// again only when the file changes, or after a restart.
    pub fn scan(&self) {
        let Some(directory) = &self.settings.plugins else { return };
        let files = files(directory);
        for (name, (path, stamp)) in &files {
            let seen = self.entries.lock().get(name).and_then(|e| e.stamp);
            if seen == Some(*stamp) {
                continue;
            }
            let installed = read(path, self.engine.limits().component_bytes)
                .and_then(|bytes| self.install(Some(name), &bytes, InstallOptions::default()));
            if let Err(e) = installed {
                tracing::warn!(plugin = name, error = %e, "a plugin in the watched directory was refused; the one before stays");
                self.refuse(name, "install", &e);
                self.keep_at_work(directory, name);
            }
            self.entry(name, |entry| entry.stamp = Some(*stamp));
        }
        let gone: Vec<String> = {
            let entries = self.entries.lock();
            entries
                .iter()
                .filter(|(n, e)| e.stamp.is_some() && !files.contains_key(*n))
                .map(|(n, _)| n.clone())
                .collect()
        };
        for name in gone {
            // It was installed since the files were looked at.
            if self.file(&name).is_some_and(|path| path.exists()) {
                continue;
            }
            // One that is part of the program stays: what was refused in its place is gone.
            if self.remove(&name, false).is_err()
                && let Some(entry) = self.entries.lock().get_mut(&name)
            {
                (entry.stamp, entry.problem) = (None, None);
            }
        }
    }

    /// Keeps the version at work, whose file was overwritten by one that was refused: a start finds it again.
    fn keep_at_work(&self, directory: &Path, name: &str) {
        let _changing = self.changing.lock();
        let at_work = {
            let entries = self.entries.lock();
            let Some(entry) = entries.get(name).filter(|entry| !entry.embedded) else { return };
            let Some(plugin) = &entry.plugin else { return };
            Previous::of(Arc::clone(plugin), Arc::clone(&entry.bytes))
        };
        let file = Role::Kept.file(directory, name);
        if let Err(e) = write_whole(directory, name, &at_work.encode(), &file) {
            tracing::warn!(plugin = name, error = %e, "the version at work is not kept: it ends with this gateway");
        }
    }

    /// Loads what is in the directory at start, without replay: it was installed before. Where a refused file lies in the place of the
    /// version that was at work, that version; the file is looked at anew by the first [`PolicyHost::scan`].
    pub(crate) fn load_installed(&self) {
        let Some(directory) = &self.settings.plugins else { return };
        let _changing = self.changing.lock();
        let bytes_max = self.engine.limits().component_bytes;
        for (name, (path, stamp)) in files(directory) {
            let kept = Previous::read(Role::Kept, directory, &name, bytes_max);
            let stamp = kept.is_none().then_some(stamp);
            let bytes = kept.map_or_else(|| read(&path, bytes_max), |kept| Ok(kept.bytes.to_vec()));
            let loaded =
                bytes.and_then(|bytes| self.load(&bytes, &self.settings.compiler).map(|plugin| (plugin, bytes)));
            let previous = Previous::read(Role::Previous, directory, &name, bytes_max);
            let mut entry = Entry { stamp, previous, ..Entry::default() };
            match loaded {
                Ok((plugin, bytes)) => {
                    entry.plugin = Some(plugin);
                    entry.bytes = bytes.into();
                }
                Err(e) => {
                    tracing::error!(plugin = name, error = %e, "an installed plugin cannot be loaded; chains go on without it");
                    entry.problem = Some(problem("load", &e));
                }
            }
            self.entries.lock().insert(name, entry);
        }
    }

    /// Loads the embedded plugin of this name when nothing is installed under it.
    pub(crate) fn ensure(&self, _: &Changing<'_>, name: &str) {
        if self.entry(name, |entry| entry.plugin.is_some()) {
            return;
        }
        let Some(embedded) = self.settings.embedded.iter().find(|e| e.name == name) else { return };
        let loaded = self.load(embedded.component, &Compiler::Here);
        self.entry(name, |entry| match loaded {
            Ok(plugin) => {
                entry.plugin = Some(plugin);
                entry.bytes = embedded.component.into();
                entry.embedded = true;
            }
            Err(e) => entry.problem = Some(problem("load", &e)),
        });
    }

    /// Looks at what is installed under a name, or exchanges it; nobody can list meanwhile.
    fn entry<T>(&self, name: &str, act: impl FnOnce(&mut Entry) -> T) -> T {
        act(self.entries.lock().entry(name.to_owned()).or_default())
    }

    /// Loads a component, or takes the one that is loaded already: plugins are the same under every name, and compiling is the dear part.
    pub(crate) fn load(&self, bytes: &[u8], compiler: &Compiler) -> Result<Arc<Plugin>> {
        let digest = blake3::hash(bytes);
        if let Some(plugin) = self.loaded.lock().get(&digest).and_then(Weak::upgrade) {
            return Ok(plugin);
        }
        let plugin = Plugin::load(&self.engine, bytes, compiler)?;
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, plugin| plugin.strong_count() > 0);
        loaded.insert(digest, Arc::downgrade(&plugin));
        Ok(plugin)
    }

    /// Checks the settings of every chain that names the plugin, and asks it the last recorded questions of these chains.
    fn try_out(
        &self,
        name: &str,
        plugin: &Plugin,
        must_agree: bool,
        replay: &mut Replay,
    ) -> std::result::Result<(), (&'static str, Error)> {
        let active = self.active.load();
        let mut must_agree = must_agree;
        for (slot, link) in active.all().filter(|(_, link)| link.binding.plugin == name) {
            if !plugin.info().slots.contains(&slot) {
                let e = Error::invalid("no-policy", format!("it does not decide {slot}, and a chain asks it to"))
                    .on(name.to_owned());
                return Err(("link", e));
            }
            check_settings(plugin, &link.binding.limits, &link.settings)
                .map_err(|e| ("settings", e.on(name.to_owned())))?;
            for record in self.journal.recent(slot) {
                if link.binding.covers(record.question.pool()) {
                    replay.compare(plugin, name, &link.settings, &link.binding.limits, &record);
                }
            }
            must_agree &= link.binding.mode == Mode::Enforce;
        }
        if replay.traps > 0 || replay.faults * 100 > replay.asked * FAILURES_PERCENT_MAX {
            let (faults, asked) = (replay.faults, replay.asked);
            let e =
                Error::invalid("fails-on-replay", format!("it fails {faults} of the last {asked} recorded questions"))
                    .on(name.to_owned())
                    .hint("`clonegate plugin replay` shows them");
            return Err(("replay", e));
        }
        if must_agree && replay.different > 0 {
            let (different, asked) = (replay.different, replay.asked);
            let e = Error::invalid(
                "differs",
                format!("it answers {different} of the last {asked} recorded questions otherwise"),
            )
            .on(name.to_owned())
            .hint("install it with --accept-differences, or bind it with mode = \"shadow\" first");
            return Err(("replay", e));
        }
        Ok(())
    }

    fn refuse(&self, name: &str, step: &str, error: &Error) {
        let Ok(name) = name.parse::<Name>() else { return };
        self.entry(name.as_str(), |entry| entry.problem = Some(problem(step, error)));
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.settings.plugins.as_ref().map(|directory| directory.join(format!("{name}.wasm")))
    }

    /// Writes the version before, then the installed one. Cut in between, both are the same, and a rollback changes nothing.
    fn keep(&self, name: &str, previous: Option<&Previous>, bytes: &[u8]) -> Result<()> {
        let (Some(path), Some(directory)) = (self.file(name), &self.settings.plugins) else { return Ok(()) };
        fs::create_dir_all(directory).map_err(|e| directory_failed(directory, e))?;
        if let Some(previous) = previous {
            write_whole(directory, name, &previous.encode(), &Role::Previous.file(directory, name))?;
        }
        write_whole(directory, name, bytes, &path)?;
        remove_file(&Role::Kept.file(directory, name))
    }
}

/// Writes a file beside its place and moves it there, so that nobody finds half of it.
fn write_whole(directory: &Path, name: &str, bytes: &[u8], path: &Path) -> Result<()> {
    let partial = directory.join(format!(".{name}.partial"));
    fs::write(&partial, bytes)
        .and_then(|()| fs::File::open(&partial)?.sync_all())
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|e| directory_failed(path, e))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(directory_failed(path, e)),
        _ => Ok(()),
    }
}

/// Checks settings, and makes one error of what is wrong with them.
///
/// # Errors
/// `bad-settings` (invalid) with every JSON path, or that the check itself failed.
pub fn check_settings(plugin: &Plugin, own: &CallLimits, settings: &str) -> Result<()> {
    let problems = plugin.check_settings(own, settings).map_err(|fault| {
        Error::invalid("bad-settings", format!("checking its settings failed: {} ({})", fault.message, fault.code))
    })?;
    if problems.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect();
    Err(Error::invalid("bad-settings", all.join("; ")))
}

fn problem(step: &str, error: &Error) -> String {
    format!("{step}: {error} [{}]", error.code())
}

fn no_such(name: &str) -> Error {
    Error::not_found("no-such-plugin", "there is no such plugin")
        .on(name.to_owned())
        .hint("`clonegate plugin list` shows all")
}

fn directory_failed(path: &Path, e: std::io::Error) -> Error {
    Error::unavailable("plugins-directory", "the directory of plugins cannot be used")
        .on(path.display().to_string())
        .because(e)
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// The `NAME.wasm` of a directory, by name.
fn files(directory: &Path) -> BTreeMap<String, (PathBuf, (SystemTime, u64))> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let found = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.strip_suffix(".wasm")?.parse::<Name>().ok()?;
        Some((name.as_str().to_owned(), (path.clone(), stamp(&path)?)))
    });
    found.collect()
}

/// Reads a component, without taking in more than the limit.
fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|e| directory_failed(path, e))?;
    Ok(bytes)
}
