"""EventBus: local apps over MQTT."""
