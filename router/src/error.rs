//! Every way a request can fail, and the one table that turns it into a status, a body, a metric label and a log level.
