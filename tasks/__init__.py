"""The tasks that producers send, by the names they have always had."""
