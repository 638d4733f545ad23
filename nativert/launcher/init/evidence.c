/* The kernel's counters of the instance's cgroup, by descriptors opened beforehand. */
#include "init.h"

#include <string.h>
#include <unistd.h>

#define MAX_FILE 4096

/* Removed from outside: then there is no evidence, which is the truth. */
static const char *read_text(int fd, char text[MAX_FILE])
{
	ssize_t got = fd < 0 ? 0 : pread(fd, text, MAX_FILE - 1, 0);

	text[got > 0 ? got : 0] = '\0';
	return text;
}

/* Return the number at *at* up to the end of its line, -1 if it is none. */
static int64_t number(const char *at)
{
	int64_t value = 0;
	const char *first = at;

	while (*at >= '0' && *at <= '9')
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, *at++ - '0', &value))
			return -1;
	return at > first && (*at == '\n' || !*at) ? value : -1;
}

/* Return the value in a line "key value", -1 if there is none. */
static int64_t keyed(const char *text, const char *key)
{
	size_t length = strlen(key);

	while (*text) {
		if (!strncmp(text, key, length) && text[length] == ' ')
			return number(text + length + 1);
		text += strcspn(text, "\n");
		text += *text == '\n';
	}
	return -1;
}

void evidence_read(const struct evidence *evidence, struct counters *counters)
{
	char text[MAX_FILE];
	int64_t usec;

	read_text(evidence->oom, text);
	counters->oom_kills = keyed(text, "oom_kill");
	if (counters->oom_kills < 0)
		counters->oom_kills = 0;
	counters->oom_events = keyed(text, "oom");
	counters->pids_events = keyed(read_text(evidence->pids, text), "max");
	/* v1 has one number in nanoseconds, v2 lines in microseconds. */
	counters->cpu_ns = number(read_text(evidence->cpu, text));
	usec = keyed(text, "usage_usec");
	if (usec >= 0)
		counters->cpu_ns = usec * 1000;
}

/* Begin to count in the middle of a run: no sum is known, nor ever will be. */
void counters_begin(const struct evidence *evidence, struct counters *counters)
{
	evidence_read(evidence, counters);
	counters->oom_events = counters->pids_events = counters->cpu_ns = -1;
}

/* Return the highest memory use of the cgroup, or -1 if the kernel has no figure. */
int64_t evidence_peak_bytes(const struct evidence *evidence)
{
	char text[MAX_FILE];

	return number(read_text(evidence->peak, text));
}
