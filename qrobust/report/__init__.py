"""From a record to what people read: HTML, Markdown, CSV, model cards."""
