//! Knows which templates, clones, disks, pools and datastores exist, by numbered put-if-absent records.
