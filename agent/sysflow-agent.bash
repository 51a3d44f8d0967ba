# Completion of sysflow-agent for bash.
_sysflow_agent() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
	local words
	case $previous in
		--config)
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
			;;
		--out)
			mapfile -t COMPREPLY < <(compgen -d -- "$current")
			return
			;;
		--for)
			return
			;;
	esac
	case ${COMP_WORDS[1]} in
		run|check|status)
			words="--config"
			;;
		capture)
			words="--for --out"
			;;
		spool)
			case ${COMP_WORDS[2]} in
				list) words="--config --json" ;;
				purge) words="--config --yes" ;;
				*) words="list purge" ;;
			esac
			;;
		*)
			words="run check status spool capture --help --version"
			;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _sysflow_agent sysflow-agent
