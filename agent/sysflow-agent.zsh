#compdef sysflow-agent
# Completion of sysflow-agent for zsh.

_sysflow_agent() {
	local -a commands=(
		'run:watch, spool and deliver until SIGTERM'
		'check:say what keeps run from working here'
		'status:print what the running agent says of itself'
		'spool:list or throw away what waits for delivery'
		'capture:watch without a collector'
	)
	local config='--config[configuration]:file:_files'
	if (( CURRENT == 2 )); then
		_describe -t commands command commands
		_arguments '(- *)'{-h,--help}'[print a summary]' '(- *)'{-V,--version}'[print the version]'
		return
	fi
	case $words[2] in
		run|check|status) _arguments $config ;;
		capture) _arguments '--for[how long]:seconds:' '--out[folder for frames]:folder:_files -/' ;;
		spool)
			case $words[3] in
				list) _arguments $config '--json[as JSON]' '*:' ;;
				purge) _arguments $config '--yes[really throw away]' '*:' ;;
				*) _values 'what' 'list[what waits]' 'purge[throw away what waits]' ;;
			esac
			;;
	esac
}

_sysflow_agent "$@"
