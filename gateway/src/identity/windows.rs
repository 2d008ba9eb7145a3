//! The answer file that Windows Setup looks for on every disk when an image that was made with sysprep starts.

use super::File;
use super::facts::Identity;

/// Of all components of an answer file.
const COMPONENT: &str =
    "processorArchitecture=\"amd64\" publicKeyToken=\"31bf3856ad364e35\" language=\"neutral\" versionScope=\"nonSxS\"";

impl Identity {
    /// `unattend.xml`, when the spec says something about a Windows.
    pub(super) fn unattend(&self) -> Option<File> {
        let windows = self.spec.windows.as_ref()?;
        let text = windows.unattend.clone().unwrap_or_else(|| {
            let element = |name: &str, value: &str| format!("      <{name}>{}</{name}>\n", escape(value));
            let mut inner = element("ComputerName", &windows.computer_name(&self.hostname, &self.name));
            if let Some(zone) = &windows.time_zone {
                inner += &element("TimeZone", zone);
            }
            if let Some(organization) = &windows.organization {
                inner += &element("RegisteredOrganization", organization);
            }
            format!(
                "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<unattend xmlns=\"urn:schemas-microsoft-com:unattend\">\n  <settings pass=\"specialize\">\n    \
                 <component name=\"Microsoft-Windows-Shell-Setup\" {COMPONENT}>\n{inner}    </component>\n  </settings>\n</unattend>\n"
            )
        });
        Some(File { path: "unattend.xml", text })
    }
}

/// Text as it may stand in an element.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::facts::Body;
    use crate::identity::spec::{IdentitySpec, WindowsSpec};
    use clonegate_core::ids::CloneId;

    #[test]
    fn an_answer_file_names_the_computer_and_takes_no_markup() {
        let windows = WindowsSpec { organization: Some("A & B </x>".to_owned()), ..WindowsSpec::default() };
        let mut spec =
            IdentitySpec { hostname: "{name}.lab".to_owned(), windows: Some(windows), ..IdentitySpec::default() };
        let of = |spec: &IdentitySpec| {
            let body = Body { spec: spec.clone(), ..Body::default() };
            Identity::of(CloneId::from_bytes([1; 16]), "desk-001", 1, Some(&body)).unwrap().unattend()
        };
        let text = of(&spec).unwrap().text;
        assert!(text.contains("<ComputerName>desk-001</ComputerName>"), "{text}");
        assert!(text.contains("<RegisteredOrganization>A &amp; B &lt;/x&gt;</RegisteredOrganization>"), "{text}");
        spec.windows = Some(WindowsSpec { unattend: Some("<mine/>".to_owned()), ..WindowsSpec::default() });
        assert_eq!(of(&spec).unwrap().text, "<mine/>");
        spec.windows = None;
        assert_eq!(of(&spec), None);
    }
}
