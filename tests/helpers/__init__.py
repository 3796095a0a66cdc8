"""What several test files share: small models, servers, runs on two processes, toy studies."""
