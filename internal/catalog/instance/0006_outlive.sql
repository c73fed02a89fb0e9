-- What has to outlive the agent: findings about a fence that was open, and a slot that was
-- made in place of a lost one, from which nobody has streamed yet.
ALTER TABLE hawser.link
	ADD COLUMN holes   jsonb,
	ADD COLUMN renewed jsonb;
