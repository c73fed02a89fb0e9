package link

import "sync"

// crew is the goroutines of one owner, who ends them and waits for them. Calls come from the
// peer while the owner waits, and want more: sync.WaitGroup alone forbids that. What comes
// too late is not begun: the owner's context has ended, and its successor takes it up.
type crew struct {
	mu   sync.Mutex
	over bool
	wg   sync.WaitGroup
}

// Go runs f on a goroutine of its own. It reports whether it did.
func (c *crew) Go(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.wg.Go(f)
	}
	return !c.over
}

// Wait returns when all have ended. None begins any more.
func (c *crew) Wait() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.wg.Wait()
}
