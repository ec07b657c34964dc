//! Sample events: what a sender's Test button sends.

/// The five event types that the sender documents, each with a body of its shape.
pub(crate) const EVENTS: [(&str, &str); 5] = [
    (
        "contact.created",
        r#"{"type":"contact.created","payload":{"contact":{"id":"cnt_1","email":"ada@example.com","name":"Ada","createdAt":"2026-11-02T09:00:00.000Z","updatedAt":"2026-11-02T09:00:00.000Z"},"botId":"bot_1"}}"#,
    ),
    (
        "message.created",
        r#"{"type":"message.created","payload":{"message":{"role":"user","content":"Do you deliver to Graz?"},"botId":"bot_1","conversationId":"cnv_1","contactId":"cnt_1","createdAt":"2026-11-02T09:00:05.000Z","updatedAt":"2026-11-02T09:00:05.000Z"}}"#,
    ),
    (
        "contact.lead.updated",
        r#"{"type":"contact.lead.updated","payload":{"contact":{"id":"cnt_1","email":"ada@example.com","lead":"qualified"},"botId":"bot_1","updatedAt":"2026-11-02T09:01:00.000Z"}}"#,
    ),
    (
        "conversation.created",
        r#"{"type":"conversation.created","payload":{"conversation":{"id":"cnv_1","contactId":"cnt_1"},"botId":"bot_1","createdAt":"2026-11-02T09:00:04.000Z"}}"#,
    ),
    (
        "takeover.request",
        r#"{"type":"takeover.request","payload":{"conversationId":"cnv_1","contactId":"cnt_1","reason":"asked for a person","botId":"bot_1","createdAt":"2026-11-02T09:02:00.000Z"}}"#,
    ),
];

/// The sample body of an event type.
pub(crate) fn body_of(event: &str) -> Option<&'static str> {
    EVENTS
        .iter()
        .find(|(name, _)| *name == event)
        .map(|(_, body)| *body)
}
