"""The command line: parse, call `runtime.Node`, print, exit code."""
