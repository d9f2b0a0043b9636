"""The services that run models: one writes generation prompts, one renders them."""
