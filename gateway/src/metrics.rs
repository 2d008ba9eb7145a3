//! Counters and gauges: names, units and labels in one place.
