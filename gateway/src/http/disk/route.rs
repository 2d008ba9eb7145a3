//! Which paths are disks, found without a router and without an allocation.

use std::fmt;

use smallvec::SmallVec;

use crate::metrics::RouteClass;

/// A path that names a disk. The name is as it stands in the path, not yet checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskRoute<'a> {
    pub(crate) class: RouteClass,
    name: &'a str,
}

impl<'a> DiskRoute<'a> {
    /// Reads `/v1/clones/{clone}/disk` and `/v1/clones/{clone}@{snapshot}/disk`, `/v1/clones/{clone}/identity`, `/v1/disks/{disk}`, `/v1/bases/{base}/disk` and
    /// `/v1/templates/{template}/disk`. Boot firmware wants a file name: `disk.img` and `disk.iso` are the same as `disk`.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v1/")?;
        let (noun, rest) = rest.split_once('/')?;
        let (name, leaf) = match rest.split_once('/') {
            Some((name, leaf)) => (name, Some(leaf)),
            None => (rest, None),
        };
        let class = match (noun, leaf) {
            ("clones", Some("disk" | "disk.img" | "disk.iso")) => RouteClass::Clone,
            ("clones", Some("identity" | "identity.img" | "identity.iso")) => RouteClass::Identity,
            ("bases", Some("disk" | "disk.img" | "disk.iso")) => RouteClass::Base,
            ("templates", Some("disk" | "disk.img" | "disk.iso")) => RouteClass::Template,
            ("disks", None) => RouteClass::Disk,
            _ => return None,
        };
        // An `@` turns one export name into another; after a clone's name it names a snapshot, and nothing else here.
        let right = match name.split_once('@') {
            None => !name.is_empty(),
            Some((clone, snapshot)) => {
                class == RouteClass::Clone && !clone.is_empty() && !snapshot.contains('@') && snapshot != "identity"
            }
        };
        right.then_some(Self { class, name })
    }

    /// The export name: what `Exports::peek` takes and `ExportName` reads.
    pub(crate) fn export(&self) -> ExportText {
        let mut text = ExportText(SmallVec::new());
        let (before, after) = match self.class {
            RouteClass::Identity => ("", "@identity"),
            RouteClass::Disk => ("disk/", ""),
            RouteClass::Base => ("base/", ""),
            RouteClass::Template => ("template/", ""),
            RouteClass::Clone | RouteClass::Control => ("", ""),
        };
        for part in [before, self.name, after] {
            text.0.extend_from_slice(part.as_bytes());
        }
        text
    }

    /// Whether the disk can never be written, whoever asks.
    pub(crate) fn never_written(&self) -> bool {
        matches!(self.class, RouteClass::Base | RouteClass::Template | RouteClass::Identity) || self.name.contains('@')
    }
}

/// An export name on the stack, unless it is longer than any valid one.
#[derive(Debug, Clone)]
pub(crate) struct ExportText(SmallVec<[u8; 96]>);

impl ExportText {
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for ExportText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expect: Option<&str>) {
        let got = DiskRoute::parse(path).map(|route| route.export().to_string());
        assert_eq!(got.as_deref(), expect, "{path}");
    }

    #[test]
    fn paths_of_disks_become_export_names() {
        check("/v1/clones/desk-1/disk", Some("desk-1"));
        check("/v1/clones/desk-1/disk.img", Some("desk-1"));
        check("/v1/clones/desk-1/identity", Some("desk-1@identity"));
        check("/v1/clones/desk-1@before/disk", Some("desk-1@before"));
        check("/v1/disks/data-1", Some("disk/data-1"));
        check("/v1/bases/b_00000000000000000000000000/disk", Some("base/b_00000000000000000000000000"));
        check("/v1/templates/win11.23h2/disk.iso", Some("template/win11.23h2"));
    }

    #[test]
    fn everything_else_is_left_to_the_router() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v1/clones",
            "/v1/clones/",
            "/v1/clones/a",
            "/v1/clones//disk",
            "/v1/clones/a/",
            "/v1/disks/",
            "/v1/clones/a/disk/",
            "/v1/clones/a/b/disk",
            "/v1/disks/a/disk",
            "/v2/clones/a/disk",
            "/v1/clones/a@identity/disk",
            "/v1/clones/a@b@c/disk",
            "/v1/clones/@b/disk",
            "/v1/clones/a@b/identity",
            "/v1/bases/a@b/disk",
            "/v1/clones/a/disk.qcow2",
            "//v1/clones/a/disk",
            "/v1/clones/a/extents",
        ] {
            check(path, None);
        }
    }
}
