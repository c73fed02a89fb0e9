package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ticks is the kernel's unit of CPU time in /proc, the same on every Linux.
const ticks = 100

// cpu is the CPU seconds that a process used, with its children that have ended.
func cpu(pid int) float64 {
	f := stat(pid)
	if f == nil {
		return 0
	}
	var sum float64
	for _, i := range []int{11, 12, 13, 14} { // utime stime cutime cstime
		n, _ := strconv.ParseFloat(f[i], 64)
		sum += n
	}
	return sum / ticks
}

// stat is what /proc tells of a process behind its name: state, parent, ….
func stat(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	text := string(data)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

// cpuOfCluster is that of a postmaster and all its processes. One that ends hands
// its time to the postmaster, so none is lost, unless that happens in between: then
// it is read again.
func cpuOfCluster(postmaster int) float64 {
	for range 10 {
		own := cpu(postmaster)
		sum := own + cpuOfChildren(postmaster)
		if cpu(postmaster) == own {
			return sum
		}
	}
	return cpu(postmaster) + cpuOfChildren(postmaster)
}

func cpuOfChildren(postmaster int) float64 {
	sum := 0.0
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if f := stat(pid); f != nil && f[1] == strconv.Itoa(postmaster) {
			sum += cpu(pid)
		}
	}
	return sum
}

// peakRSS is the most memory, in MB, that a process has had since resetRSS.
func peakRSS(pid int) float64 {
	return statusKB(pid, "VmHWM:") / 1024
}

func statusKB(pid int, key string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb
		}
	}
	return 0
}

func resetRSS(pid int) {
	// Where the kernel refuses, the peak is that since the process began.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

func loadAverage() float64 {
	data, _ := os.ReadFile("/proc/loadavg")
	n, _ := strconv.ParseFloat(strings.SplitN(string(data), " ", 2)[0], 64)
	return n
}

func median(v []float64) float64 { return percentile(v, 0.5) }

func percentile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); q == 0.5 && n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
