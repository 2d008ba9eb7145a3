//! HTTP: connections with limits, disk bytes, the control interface.
