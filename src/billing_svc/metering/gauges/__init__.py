"""Gauges: levels that no period resets, such as seats or stored gigabytes."""
