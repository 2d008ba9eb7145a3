//! An NBD client for the load generator and the tests.
