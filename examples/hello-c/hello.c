/* Says what a native process sees of the world that nativert gave it. */
#include <net/if.h>
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char cwd[4096];
	struct utsname host;
	struct if_nameindex *links;

	if (uname(&host) || !getcwd(cwd, sizeof cwd)) {
		perror(argv[0]);
		return 1;
	}
	printf("hello, %s\n", argc > 1 ? argv[1] : "world");
	printf("host %s, pid %d, uid %d, gid %d, in %s\n",
	       host.nodename, (int)getpid(), (int)getuid(), (int)getgid(), cwd);

	links = if_nameindex();
	if (!links) {
		perror("if_nameindex");
		return 1;
	}
	printf("links:");
	for (struct if_nameindex *link = links; link->if_index; link++)
		printf(" %s", link->if_name);
	printf("\n");
	if_freenameindex(links);
	return 0;
}
