//! The example that lives a week of a lab.

use std::process::Command;

use clonegate_tests::cases;
use clonegate_tests::gateway::{free_address, program};
use clonegate_tests::tree;

cases! {
    "bash", "curl" => the_week_of_a_lab_ends_with_every_byte_where_it_belongs;
}

fn the_week_of_a_lab_ends_with_every_byte_where_it_belongs() {
    let port = free_address().port().to_string();
    let script = tree::root().join("examples/lab/week.sh");
    let output = Command::new("bash").arg(script).arg("300").env("CLONEGATE", program()).env("PORT", port).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("clean"), "{said}");
}
