//! Object stores as clonegate uses them: put-if-absent, checked reads, deadlines.
