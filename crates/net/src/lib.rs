//! Net: cluster authority, mutual TLS, framed messages between agents
