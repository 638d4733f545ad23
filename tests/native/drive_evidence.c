/* The counters of init: arguments are the files of oom, peak, cpu and pids; "-" is none. */
#include "init.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int file(const char *path)
{
	return strcmp(path, "-") ? open(path, O_RDONLY) : -1;
}

int main(int argc, char **argv)
{
	struct evidence evidence;
	struct counters counters;

	if (argc != 5)
		return 2;
	evidence = (struct evidence){
		.oom = file(argv[1]),
		.peak = file(argv[2]),
		.cpu = file(argv[3]),
		.pids = file(argv[4]),
	};
	evidence_read(&evidence, &counters);
	printf("%lld %lld %lld %lld %lld\n", (long long)counters.oom_kills,
	       (long long)counters.oom_events, (long long)counters.pids_events,
	       (long long)counters.cpu_ns, (long long)evidence_peak_bytes(&evidence));
	return 0;
}
